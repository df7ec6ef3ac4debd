"""CNN-3 of AICR's published code: the source of the paper's black-box cells on MNIST.

    conv 5x5 16, ReLU
    conv 5x5 32, ReLU, max-pool 2
    conv 5x5 64, ReLU, max-pool 2        tap `conv3` (576 numbers for 28x28 images)
    linear 100, ReLU                     tap `fc1`
    linear K

No padding, biases everywhere; 123,222 parameters for 28x28 grey images and K = 10. Images enter as
they are, in [0, 1]; smaller ones than 20x20 are resized bilinearly to 28x28 inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .resize import at_least

CARD = {
    "object": "CNN3",
    "version": 1,
    "source": "Alagurajah and Chu 2022 (AICR), published code",
    "params": {
        "width": {"unit": "channels", "help": "channels of the first convolution", "min": 1},
        "hidden": {"unit": "neurons", "help": "size of the hidden layer", "min": 1},
    },
}

SMALLEST = 20  # what leaves one pixel at the end: 20 - 4 - 4 = 12, 6 - 4 = 2, 1
USUAL = 28


@dataclass(frozen=True)
class CNN3:
    width: int = 16
    hidden: int = 100

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W)."""
        return CNN3Network(shape, classes, self.width, self.hidden)


class CNN3Network(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K).

    Taps: `conv3` (N, 4 w * h * w'), flat, and `fc1` (N, hidden); both after their ReLU.
    `classifier` maps the last to logits.
    """

    tap_names: tuple[str, ...] = ("conv3", "fc1")

    def __init__(
        self, shape: tuple[int, int, int], classes: int, filters: int, hidden: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.side = USUAL if min(height, width) < SMALLEST else 0
        rows, columns = (((max(n, self.side) - 8) // 2 - 4) // 2 for n in (height, width))
        self.conv1 = nn.Conv2d(channels, filters, 5)
        self.conv2 = nn.Conv2d(filters, 2 * filters, 5)
        self.conv3 = nn.Conv2d(2 * filters, 4 * filters, 5)
        self.fc1 = nn.Linear(4 * filters * rows * columns, hidden)
        self.classifier = nn.Linear(hidden, classes)

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one pass, and `logits` (N, K)."""
        x = F.relu(self.conv1(at_least(images, self.side)))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        conv3 = F.max_pool2d(F.relu(self.conv3(x)), 2).flatten(1)
        fc1 = F.relu(self.fc1(conv3))
        return {"conv3": conv3, "fc1": fc1, "logits": self.classifier(fc1)}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]
