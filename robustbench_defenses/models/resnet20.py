"""ResNet-20 of the CIFAR experiments of He et al.: three stages of three basic blocks.

    conv 3x3 16, BatchNorm, ReLU
    3 basic blocks each of width 16, 32, 64 (strides 1, 2, 2)             taps `stage1`, `stage2`
    global average                                                          tap `features`
    linear K

Shortcuts between stages pad with zeros (option A), so the network has 269,722 parameters for 3
channels and K = 10. Images enter as they are, in [0, 1], at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .residual import BasicNetwork

CARD = {
    "object": "ResNet20",
    "version": 1,
    "source": "He, Zhang, Ren and Sun 2016, section 4.2",
    "params": {
        "width": {"unit": "channels", "help": "channels of the first stage", "min": 1},
        "blocks": {"help": "basic blocks of each stage: depth 6 n + 2", "min": 1},
    },
}


@dataclass(frozen=True)
class ResNet20:
    width: int = 16
    blocks: int = 3

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W)."""
        widths = (self.width, 2 * self.width, 4 * self.width)
        return BasicNetwork(shape[0], classes, widths, (1, 2, 2), self.blocks, padded=True)
