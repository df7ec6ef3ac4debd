"""Madry's MNIST network: two 5x5 convolutions, each pooled, and one hidden layer.

    conv 5x5 `width`, ReLU, max-pool 2
    conv 5x5 2 `width`, ReLU, max-pool 2
    linear `hidden`, ReLU
    linear K

"Same" padding, biases everywhere, no BatchNorm, no dropout (Madry et al. 2018; the network of the
MNIST challenge has width 32 and hidden 1024). Images enter as they are, in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import UserError

CARD = {
    "object": "LeNet",
    "version": 1,
    "source": "Madry et al. 2018, MNIST challenge",
    "params": {
        "width": {"unit": "channels", "help": "channels of the first convolution", "min": 1},
        "hidden": {"unit": "neurons", "help": "size of the hidden layer", "min": 1},
    },
}


@dataclass(frozen=True)
class LeNet:
    width: int = 32
    hidden: int = 1024

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W), H and W at least 4."""
        channels, height, width = shape
        if min(height, width) < 4:
            raise UserError(f"lenet needs images of at least 4x4 pixels, not {height}x{width}")
        return LeNetNetwork(channels, height, width, classes, self.width, self.hidden)


class LeNetNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K).

    Taps: `conv1` (N, width, H/2, W/2), `conv2` (N, 2 width, H/4, W/4), `fc1` (N, hidden); all
    after their ReLU.
    """

    tap_names: tuple[str, ...] = ("conv1", "conv2", "fc1")

    def __init__(
        self, channels: int, height: int, width: int, classes: int, filters: int, hidden: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 5, padding=2)
        self.conv2 = nn.Conv2d(filters, 2 * filters, 5, padding=2)
        self.fc1 = nn.Linear(2 * filters * (height // 4) * (width // 4), hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one pass, and `logits` (N, K)."""
        conv1 = F.max_pool2d(F.relu(self.conv1(images)), 2)
        conv2 = F.max_pool2d(F.relu(self.conv2(conv1)), 2)
        fc1 = F.relu(self.fc1(conv2.flatten(1)))
        return {"conv1": conv1, "conv2": conv2, "fc1": fc1, "logits": self.fc2(fc1)}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]
