"""Slow, literal transcriptions of the printed equations: loops over numbers, no shortcuts."""

from __future__ import annotations

import itertools

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


def prototype_conformity(f: Tensor, w: Tensor, labels: list[int]) -> Tensor:
    """PCL as printed, averaged over the batch; f (B, d), w (K, d)."""
    classes = len(w)
    total = torch.zeros((), dtype=f.dtype)
    for i in range(len(f)):
        y = labels[i]
        total = total + norm(f[i] - w[y], False)
        for j in range(classes):
            if j != y:
                push = norm(f[i] - w[j], False) + norm(w[y] - w[j], False)
                total = total - push / (classes - 1)
    return total / len(f)


def adaptive_diversity(logits: Tensor, labels: list[int], alpha: float, beta: float) -> Tensor:
    """ADP's loss; logits (M, B, K); the determinant by its Leibniz sum."""
    members, size, classes = logits.shape
    total = torch.zeros((), dtype=logits.dtype)
    for i in range(size):
        f = [torch.exp(logits[m, i]) / sum(torch.exp(logits[m, i, k]) for k in range(classes))
             for m in range(members)]  # fmt: skip
        for m in range(members):
            total = total - torch.log(f[m][labels[i]])
        mean = sum(f) / members
        for k in range(classes):
            total = total + alpha * mean[k] * torch.log(mean[k] + 1e-20)
        u = []
        for m in range(members):
            rest = torch.stack([f[m][k] for k in range(classes) if k != labels[i]])
            u.append(rest / norm(rest, False))
        gram = [[sum(u[a][k] * u[b][k] for k in range(classes - 1)) + (1e-6 if a == b else 0.0)
                 for b in range(members)] for a in range(members)]  # fmt: skip
        determinant = torch.zeros((), dtype=logits.dtype)
        for order in itertools.permutations(range(members)):
            swaps = sum(order[a] > order[b] for a in range(members) for b in range(a + 1, members))
            term = torch.ones((), dtype=logits.dtype)
            for a in range(members):
                term = term * gram[a][order[a]]
            determinant = determinant + (-1) ** swaps * term
        total = total - beta * torch.log(determinant)
    return total / size


def at2l_triplets(anchor: Tensor, clean: Tensor, labels: list[int], margin: float) -> Tensor:
    """Farthest other image of the class, nearest of another one, hinge, mean."""
    found = []
    for i in range(len(anchor)):
        same = [norm(anchor[i] - clean[j], False) for j in range(len(clean))
                if labels[j] == labels[i] and j != i]  # fmt: skip
        other = [norm(anchor[i] - clean[j], False) for j in range(len(clean))
                 if labels[j] != labels[i]]  # fmt: skip
        if same and other:
            gap = max(same) - min(other) + margin
            found.append(gap if gap > 0 else torch.zeros((), dtype=anchor.dtype))
    return torch.stack(found).mean()


def tla_triplets(
    anchor: Tensor, positive: Tensor, clean: Tensor, labels: list[int], there: list[bool],
    margin: float, shrink: float,
) -> Tensor:  # fmt: skip
    """TLA's term with the hardest negative by cosine."""

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return sum((a * b for a, b in zip(u, v)), torch.zeros((), dtype=u.dtype))

    def cosine(u: Tensor, v: Tensor) -> Tensor:
        return dot(u, v) / (dot(u, u).sqrt() * dot(v, v).sqrt())

    hinges, squares, numbers = [], torch.zeros((), dtype=anchor.dtype), 0
    for i in range(len(anchor)):
        rivals = [j for j in range(len(clean)) if labels[j] != labels[i]]
        if not there[i] or not rivals:
            continue
        hardest = max(rivals, key=lambda j: float(cosine(anchor[i], clean[j])))
        pull = 1 - cosine(anchor[i], positive[i]).abs()
        push = 1 - cosine(anchor[i], clean[hardest]).abs()
        gap = pull - push + margin
        hinges.append(gap if gap > 0 else torch.zeros((), dtype=anchor.dtype))
        for values in (anchor[i], positive[i], clean[hardest]):
            squares = squares + dot(values, values)
        numbers += anchor.shape[1]
    return torch.stack(hinges).mean() + shrink * squares / numbers
