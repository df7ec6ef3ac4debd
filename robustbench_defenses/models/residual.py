"""Residual blocks (He et al. 2016), normalised after each convolution and before each ReLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """ReLU(branch(x) + shortcut(x)); equation 2 of He et al. 2016."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Every `stride`-th pixel, with zeros for the channels that are new: no weights (option A)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = out - channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


def conv_norm(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size at stride 1, and its BatchNorm."""
    conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out)]


def shortcut(channels: int, out: int, stride: int, padded: bool = False) -> nn.Module:
    """The identity where shapes agree, else a 1x1 convolution with BatchNorm (or `padded`)."""
    if channels == out and stride == 1:
        return nn.Identity()
    if padded:
        return PaddedShortcut(channels, out, stride)
    return nn.Sequential(*conv_norm(channels, out, 1, stride))


def basic(channels: int, out: int, stride: int, padded: bool = False) -> Residual:
    """Two 3x3 convolutions."""
    branch = [*conv_norm(channels, out, 3, stride), nn.ReLU(), *conv_norm(out, out, 3)]
    return Residual(nn.Sequential(*branch), shortcut(channels, out, stride, padded))


def bottleneck(channels: int, planes: int, out: int, stride: int) -> Residual:
    """1x1 to `planes` channels, 3x3, and 1x1 to `out` channels."""
    branch = [
        *conv_norm(channels, planes, 1), nn.ReLU(),
        *conv_norm(planes, planes, 3, stride), nn.ReLU(),
        *conv_norm(planes, out, 1),
    ]  # fmt: skip
    return Residual(nn.Sequential(*branch), shortcut(channels, out, stride))


def start_weights(network: nn.Module) -> None:
    """Convolutions from N(0, 2 / fan_out) (He et al. 2015); the rest as torch starts it."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class BasicNetwork(nn.Module):
    """Stages of basic blocks: images (N, C, H, W) in [0, 1] to logits (N, K).

    `widths`: channels of the stages; `strides`: of each stage's first block; `blocks` per stage.
    Taps, global averages behind a ReLU: `stage1`, ... (N, width) of all stages but the last,
    `features` (N, widths[-1]) of the last. `classifier` maps `features` to logits.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        blocks: int,
        stem_stride: int = 1,
        padded: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(channels, widths[0], 3, stem_stride), nn.ReLU())
        self.stages = nn.ModuleList()
        before = widths[0]
        for width, stride in zip(widths, strides, strict=True):
            stage = [basic(before, width, stride, padded)]
            stage += [basic(width, width, 1, padded) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            before = width
        self.classifier = nn.Linear(before, classes)
        names = (*(f"stage{number}" for number in range(1, len(widths))), "features")
        self.tap_names: tuple[str, ...] = names
        start_weights(self)

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """All taps of one pass, and `logits` (N, K)."""
        taps = {}
        x = self.stem(images)
        for name, stage in zip(self.tap_names, self.stages, strict=True):
            x = stage(x)
            taps[name] = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return {**taps, "logits": self.classifier(taps["features"])}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]
