"""Small networks trained on the embedded digits in a second or two, for tests of strength."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.data import source
from robustbench_defenses.engine.craft import craft
from tests.engine import oracles


@functools.cache
def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) float32 in [0, 1] and labels (N,)."""
    data = source.load("digits", split)
    return source.to_float(data.images), data.labels


def network(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 16, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


@functools.cache
def trained(seed: int = 0, width: int = 8, epochs: int = 12, eps: float = 0.0) -> nn.Module:
    """A network in evaluation mode; with `eps` trained on PGD images of that Linf budget."""
    images, labels = digits("train")
    attack = oracles.build("pgd_linf", steps=4, rel_step=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network(width)
        optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(128):
                x, y = images[batch], labels[batch]
                if eps > 0:
                    x = craft(net, attack, x, y, eps)
                optimiser.zero_grad()
                F.cross_entropy(net(x), y).backward()
                optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return net.eval()
