"""ResNet-110 of the AICR paper: three stages of bottlenecks and a linear layer of 1,024 units.

    conv 3x3 16, BatchNorm, ReLU
    12 blocks [1x1 16, 3x3 16, 1x1 64]
    12 blocks [1x1 32, 3x3 32, 1x1 128], stride 2      global maximum: tap `stage2` (128 numbers)
    12 blocks [1x1 64, 3x3 64, 1x1 256], stride 2      global average: tap `stage3` (256 numbers)
    linear 1024, nothing behind it                       tap `fc1024`
    linear K

1,418,586 parameters for 3 channels and K = 10. Table 1 prints 128 planes in the last stage, which
breaks the factor 4 of the others (`resnet110_printed`), and the published code that it was taken
from builds 18 blocks a stage when asked for depth 110 (`resnet164`, 1,975,002 parameters). Images
enter as they are, in [0, 1], at any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .residual import bottleneck, conv_norm, start_weights

CARD = {
    "object": "ResNet110",
    "version": 1,
    "source": "Alagurajah and Chu 2022 (AICR), table 1",
    "params": {
        "blocks_per_stage": {
            "help": "bottlenecks of each stage: 3 n layers",
            "min": 1,
            "papers": {"aicr": 12, "aicr code": 18},
        },
        "width": {
            "unit": "channels",
            "help": "inside the first stage's bottlenecks; 4 times as many behind them",
            "min": 1,
        },
        "last_factor": {
            "help": "the last stage's bottlenecks have so many times the first's channels inside",
            "min": 1,
            "papers": {"aicr": 8, "aicr code": 4},
        },
        "hidden": {"unit": "neurons", "help": "size of the linear layer", "min": 1},
    },
    "variants": {
        "resnet110_printed": {
            "set": {"last_factor": 8},
            "summary": "ResNet-110 with the widths that table 1 of the AICR paper prints",
        },
        "resnet164": {
            "set": {"blocks_per_stage": 18},
            "summary": "What the published code of AICR's networks builds for depth 110",
        },
    },
}


@dataclass(frozen=True)
class ResNet110:
    blocks_per_stage: int = 12
    width: int = 16
    last_factor: int = 4
    hidden: int = 1024

    def build(self, shape: tuple[int, int, int], classes: int) -> nn.Module:
        """The network for images of `shape` (C, H, W)."""
        planes = (self.width, 2 * self.width, self.last_factor * self.width)
        outputs = (4 * self.width, 8 * self.width, 16 * self.width)
        return BottleneckNetwork(
            shape[0], classes, self.blocks_per_stage, planes, outputs, self.hidden
        )


class BottleneckNetwork(nn.Module):
    """Images (N, C, H, W) in [0, 1] to logits (N, K).

    Taps: `stage2` (N, outputs[1]), the global maximum of the second stage; `stage3`
    (N, outputs[2]), the global average of the third; `fc1024` (N, hidden). `classifier` maps
    the last to logits.
    """

    tap_names: tuple[str, ...] = ("stage2", "stage3", "fc1024")

    def __init__(
        self,
        channels: int,
        classes: int,
        blocks: int,
        planes: tuple[int, int, int],
        outputs: tuple[int, int, int],
        hidden: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(channels, planes[0], 3), nn.ReLU())
        before, stages = planes[0], []
        for plane, out, stride in zip(planes, outputs, (1, 2, 2), strict=True):
            stage = [bottleneck(before, plane, out, stride)]
            stage += [bottleneck(out, plane, out, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            before = out
        self.stages = nn.ModuleList(stages)
        self.fc1024 = nn.Linear(before, hidden)
        self.classifier = nn.Linear(hidden, classes)
        start_weights(self)

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one pass, and `logits` (N, K)."""
        second = self.stages[1](self.stages[0](self.stem(images)))
        stage2 = F.adaptive_max_pool2d(second, 1).flatten(1)
        stage3 = F.adaptive_avg_pool2d(self.stages[2](second), 1).flatten(1)
        fc1024 = self.fc1024(stage3)
        logits = self.classifier(fc1024)
        return {"stage2": stage2, "stage3": stage3, "fc1024": fc1024, "logits": logits}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]
