"""A small network on scikit-learn's digits, trained in a second or two, for strength tests."""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def digits_network() -> tuple[nn.Module, Tensor, Tensor]:
    """A network and 120 digits (N, 1, 16, 16) float32 that it classifies correctly."""
    model, images, labels = _trained()
    return copy.deepcopy(model), images.clone(), labels.clone()


@lru_cache(maxsize=1)
def _trained() -> tuple[nn.Module, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    images = F.interpolate(images, scale_factor=2, mode="bilinear").clamp(0, 1)
    labels = torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )
        weights = list(model.parameters())
        speed = [torch.zeros_like(weight) for weight in weights]
        for _ in range(8):
            for index in torch.randperm(1400).split(50):
                loss = F.cross_entropy(model(images[index]), labels[index])
                for weight, change, slope in zip(
                    weights, speed, torch.autograd.grad(loss, weights)
                ):
                    change.mul_(0.9).add_(slope)
                    weight.data.sub_(0.05 * change)
    model.eval()
    with torch.no_grad():
        right = (model(images[1400:]).argmax(1) == labels[1400:]).nonzero()[:120, 0] + 1400
    return model, images[right], labels[right]
