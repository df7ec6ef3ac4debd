"""A small network and its images, for tests of the search twin, and how far answers lie apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIZE = (1, 12, 12)


def images(count: int = 16, shape: tuple[int, ...] = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def network(channels: int = 1, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 5 * 5, 10),
        )
    return net.eval()


def relative(a: Tensor, b: Tensor) -> float:
    """Length of the difference, as a share of the length of `b`."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def gradient(call: Any, points: Tensor, weight: Tensor) -> Tensor:
    points = points.clone().requires_grad_()
    return torch.autograd.grad((call(points).float() * weight).sum(), points)[0]
