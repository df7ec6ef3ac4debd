"""VGG in its form for small images: blocks of 3x3 convolutions, each pooled, and a linear layer.

    blocks of 1, 1, 2, 2, 2 convolutions 3x3 with 64, 128, 256, 512, 512 channels,
    each followed by BatchNorm and ReLU; max-pool 2 behind each block      taps `block3`, `block4`
    global average                                                          tap `features`
    linear K

Configuration A of Simonyan and Zisserman with BatchNorm, 9,231,114 parameters for 3 channels and
K = 10: the source of the AICR paper's black-box cells on colour images. Images enter as they are,
in [0, 1]; smaller ones than 32x32 are resized bilinearly to it inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError
from .residual import start_weights
from .resize import at_least

CARD = {
    "object": "VGG11",
    "version": 1,
    "source": "Simonyan and Zisserman 2015, table 1",
    "params": {
        "width": {"unit": "channels", "help": "channels of the first block", "min": 1},
        "convs": {"help": "convolutions of each of the five blocks"},
        "batch_norm": {"help": "a BatchNorm behind every convolution"},
    },
    "variants": {
        "vgg16": {
            "set": {"convs": [2, 2, 3, 3, 3]},
            "summary": "VGG-16 (configuration D) for small images, with BatchNorm",
        },
        "vgg19": {
            "set": {"convs": [2, 2, 4, 4, 4]},
            "summary": "VGG-19 (configuration E) for small images, with BatchNorm",
        },
    },
}

SMALLEST = 32  # five poolings by 2


@dataclass(frozen=True)
class VGG11:
    width: int = 64
    convs: tuple[int, int, int, int, int] = (1, 1, 2, 2, 2)
    batch_norm: bool = True

    def __post_init__(self) -> None:
        if min(self.convs) < 1:
            raise UserError(
                f"vgg11: convs = {self.convs}; every block has at least one convolution"
            )

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W)."""
        return VGGNetwork(shape[0], classes, self.width, self.convs, self.batch_norm)


class VGGNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K).

    Taps: `block3` (N, 4 w), `block4` (N, 8 w), `features` (N, 8 w), the global averages of the last
    three blocks. `classifier` maps `features` to logits.
    """

    tap_names: tuple[str, ...] = ("block3", "block4", "features")

    def __init__(
        self, channels: int, classes: int, width: int, convs: tuple[int, ...], batch_norm: bool
    ) -> None:
        super().__init__()
        blocks = []
        for number, out in zip(convs, (width, 2 * width, 4 * width, 8 * width, 8 * width)):
            layers: list[nn.Module] = []
            for _ in range(number):
                norm = [nn.BatchNorm2d(out)] if batch_norm else []
                layers += [nn.Conv2d(channels, out, 3, padding=1), *norm, nn.ReLU()]
                channels = out
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2)))
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(channels, classes)
        start_weights(self)

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one pass, and `logits` (N, K)."""
        x, taps = at_least(images, SMALLEST), []
        for block in self.blocks:
            x = block(x)
            taps.append(x)
        named = dict(zip(self.tap_names, taps[-3:]))
        pooled = {name: F.adaptive_avg_pool2d(tap, 1).flatten(1) for name, tap in named.items()}
        return {**pooled, "logits": self.classifier(pooled["features"])}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]
