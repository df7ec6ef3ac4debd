"""ResNet-18 in its form for small images: no pooling at the start, four stages of basic blocks.

    conv 3x3 64, BatchNorm, ReLU
    2 basic blocks each of width 64, 128, 256, 512 (strides 1, 2, 2, 2)   taps `stage1` ... `stage3`
    global average                                                          tap `features`
    linear K

11,173,962 parameters for 3 channels and K = 10. `resnet18_thin` is the network of the AFD paper's
MNIST rows, cheap enough for a CPU: widths 16, 32, 48, 64, stride 2 in the first convolution and in
every stage. Images enter as they are, in [0, 1], at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from ..core.errors import UserError
from .residual import BasicNetwork

CARD = {
    "object": "ResNet18",
    "version": 1,
    "source": "He, Zhang, Ren and Sun 2016; for small images as in Bashivan et al. 2021 (AFD)",
    "params": {
        "width": {"unit": "channels", "help": "channels of the first stage", "min": 1},
        "widening": {"help": "stage k has width 2^(k - 1) or width k channels"},
        "strides": {"help": "stride of each stage's first block"},
        "stem_stride": {"help": "stride of the first convolution", "min": 1},
        "blocks": {"help": "basic blocks of each stage", "min": 1},
    },
    "variants": {
        "resnet18_thin": {
            "set": {
                "width": 16,
                "widening": "linear",
                "strides": [2, 2, 2, 2],
                "stem_stride": 2,
            },
            "summary": "The narrow ResNet-18 of the AFD paper's MNIST rows",
        },
    },
}


@dataclass(frozen=True)
class ResNet18:
    width: int = 64
    widening: Literal["doubling", "linear"] = "doubling"
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    stem_stride: int = 1
    blocks: int = 2

    def __post_init__(self) -> None:
        if min(self.strides) < 1:
            raise UserError(f"resnet18: strides = {self.strides}; each is at least 1")

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W)."""
        factors = (1, 2, 4, 8) if self.widening == "doubling" else (1, 2, 3, 4)
        widths = tuple(factor * self.width for factor in factors)
        return BasicNetwork(shape[0], classes, widths, self.strides, self.blocks, self.stem_stride)
