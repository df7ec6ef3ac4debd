"""CNN-6 of the AICR paper: three stages of two 5x5 convolutions and a head of linear maps.

    3 stages of width w, 2w, 4w:  conv 5x5, ReLU, conv 5x5, max-pool 2, ReLU
    flatten                       tap `features`   (1152 numbers for 28x28 images, w = 32)
    linear 512                    tap `fc512`
    linear 64                     tap `fc64`
    linear K

The table prints a pooling behind every convolution, which a 28x28 image cannot bear; one pooling a
stage is what gives the printed sizes. It prints no ReLU in the head: the head is three linear maps
(`head_relu` puts a ReLU behind the first two). Images enter as they are, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError

CARD = {
    "object": "CNN6",
    "version": 1,
    "source": "Alagurajah and Chu 2022 (AICR), table 1",
    "params": {
        "width": {
            "unit": "channels",
            "help": "channels of the first stage; 16 is the half-width network",
            "min": 1,
            "papers": {"aicr": 32},
        },
        "head_relu": {"help": "a ReLU behind the 512 and the 64 linear units"},
    },
}


@dataclass(frozen=True)
class CNN6:
    width: int = 32
    head_relu: bool = False

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W), H and W at least 8."""
        channels, height, width = shape
        if min(height, width) < 8:
            raise UserError(f"cnn6 needs images of at least 8x8 pixels, not {height}x{width}")
        return CNN6Network(channels, height, width, classes, self.width, self.head_relu)


class CNN6Network(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K).

    Taps: `features` (N, 4 w * H/8 * W/8), `fc512` (N, 512), `fc64` (N, 64). The two linear taps
    are read before a ReLU, where AICR's losses sit.
    """

    tap_names: tuple[str, ...] = ("features", "fc512", "fc64")

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        classes: int,
        filters: int,
        head_relu: bool,
    ) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for out in (filters, 2 * filters, 4 * filters):
            stages += [nn.Conv2d(channels, out, 5, padding=2), nn.ReLU()]
            stages += [nn.Conv2d(out, out, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()]
            channels = out
        self.stages = nn.Sequential(*stages)
        self.fc512 = nn.Linear(channels * (height // 8) * (width // 8), 512)
        self.fc64 = nn.Linear(512, 64)
        self.classifier = nn.Linear(64, classes)
        self.head_relu = head_relu

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one pass, and `logits` (N, K)."""
        features = self.stages(images).flatten(1)
        fc512 = self.fc512(features)
        fc64 = self.fc64(F.relu(fc512) if self.head_relu else fc512)
        logits = self.classifier(F.relu(fc64) if self.head_relu else fc64)
        return {"features": features, "fc512": fc512, "fc64": fc64, "logits": logits}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]
