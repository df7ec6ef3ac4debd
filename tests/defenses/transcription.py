"""Slow, literal transcriptions of the printed equations: loops over numbers, no shortcuts."""

from __future__ import annotations

import torch
from torch import Tensor


def norm(values: Tensor, squared: bool) -> Tensor:
    total = sum((value * value for value in values), torch.zeros((), dtype=values.dtype))
    return total if squared else total.sqrt()


def attract_repulse_equation_8(h: Tensor, hp: Tensor, c: Tensor, labels: list[int]) -> Tensor:
    """AICR equation 8, averaged over the batch; h, hp (B, d), c (K, d)."""
    classes, size = len(c), len(h)
    total = torch.zeros((), dtype=h.dtype)
    for i in range(size):
        y = labels[i]
        total = total + norm(h[i] - c[y], False) + norm(hp[i] - c[y], False)
        for j in range(classes):
            if j != y:
                push = norm(h[i] - c[j], False) + norm(hp[i] - c[j], False)
                total = total - push / (classes - 1)
    return total / size


def squared_pull_and_push(
    f: Tensor, a: Tensor, b: Tensor, labels: list[int]
) -> tuple[Tensor, Tensor]:
    """The published code: PROX over 2B features and centres a, CON over centres b."""
    pull = torch.zeros((), dtype=f.dtype)
    push = torch.zeros((), dtype=f.dtype)
    pairs = 0
    for i in range(len(f)):
        pull = pull + norm(f[i] - a[labels[i]], True)
        for j in range(len(b)):
            if j != labels[i]:
                push = push + norm(f[i] - b[j], True)
                pairs += 1
    return pull / len(f), push / pairs


def barlow_equations_10_and_11(u: Tensor, up: Tensor, off: float) -> Tensor:
    """Q by the double loop over coordinates, bn with biased variance and 1e-5; u, up (B, d)."""
    size, width = u.shape

    def bn(values: Tensor) -> Tensor:
        columns = []
        for j in range(width):
            mean = sum(values[:, j]) / size
            variance = sum((values[i, j] - mean) ** 2 for i in range(size)) / size
            columns.append((values[:, j] - mean) / (variance + 1e-5) ** 0.5)
        return torch.stack(columns, 1)

    z, zp = bn(u), bn(up)
    total = torch.zeros((), dtype=u.dtype)
    for i in range(width):
        for j in range(width):
            q = sum(z[b, i] * zp[b, j] for b in range(size)) / size
            total = total + ((1 - q) ** 2 if i == j else off * q**2)
    return total


def cross_entropy(logits: Tensor, labels: list[int]) -> Tensor:
    """-log of the softmax of the label, mean over the batch."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, y in zip(logits, labels):
        total = total - (row[y].exp() / sum(value.exp() for value in row)).log()
    return total / len(logits)
