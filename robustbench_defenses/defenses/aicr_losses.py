"""The loss terms of AICR, equation by equation, and the projector that only they train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The published code keeps squared distances within these bounds.
SMALLEST, LARGEST = 1e-12, 1e12


def distances(features: Tensor, centres: Tensor, squared: bool) -> Tensor:
    """Distances (N, K) of `features` (N, d) to `centres` (K, d), Euclidean or squared.

    By differences, not by the expanded square: features can grow large while clusters stay tight.
    The gradient at distance zero is zero.
    """
    found = torch.cdist(features, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return found.square().clamp(SMALLEST, LARGEST) if squared else found


def attract(features: Tensor, centres: Tensor, labels: Tensor, squared: bool) -> Tensor:
    """The pull of equation 8: mean over i of |h_i - c_{y_i}| (or its square).

    `features` (N, d), `centres` (K, d), `labels` (N,); a scalar.
    """
    return distances(features, centres, squared).gather(1, labels[:, None]).mean()


def repulse(features: Tensor, centres: Tensor, labels: Tensor, squared: bool) -> Tensor:
    """The push of equation 8: mean over i and j != y_i of |h_i - c_j| (or its square).

    `features` (N, d), `centres` (K, d), `labels` (N,); a scalar, to be made large.
    """
    found = distances(features, centres, squared)
    others = torch.ones_like(found).scatter_(1, labels[:, None], 0.0)
    return (found * others).sum() / others.sum()


def standardise(values: Tensor) -> Tensor:
    """bn of equation 11: per column mean 0 and (biased) variance 1 over the batch; (B, d)."""
    if len(values) < 2:
        raise ValueError("the cross-correlation of a single example is undefined")
    variance_, mean = torch.var_mean(values, dim=0, correction=0)
    return (values - mean) * torch.rsqrt(variance_ + 1e-5)


def cross_correlation(clean: Tensor, perturbed: Tensor) -> Tensor:
    """Equation 11 as meant: Q = bn(u)^T bn(u') / B for projections u, u' (B, d); Q is (d, d)."""
    return standardise(clean).T @ standardise(perturbed) / len(clean)


def variance(q: Tensor, off_diagonal: float) -> Tensor:
    """Equation 10: sum_i (1 - Q_ii)^2 + lambda sum_{i != j} Q_ij^2 for Q (d, d); a scalar."""
    # Masked, because total minus diagonal loses its digits where Q is close to the identity.
    diagonal = torch.eye(len(q), dtype=torch.bool, device=q.device)
    on = (1 - q.diagonal()).square().sum()
    return on + off_diagonal * q.masked_fill(diagonal, 0.0).square().sum()


def redundancy(clean: Tensor, perturbed: Tensor, off_diagonal: float) -> Tensor:
    """Equations 10 and 11 in one: `variance(cross_correlation(clean, perturbed), off_diagonal)`.

    Wide projections (B, d) never form the (d, d) matrix: the sum of all its squares is
    sum_{ab} (Z Z^T)_ab (Z' Z'^T)_ab / B^2, which takes B^2 d products instead of B d^2. Q then has
    rank B at most, so what lies off its diagonal is at least of the order d^2 / B - d, and total
    minus diagonal keeps its digits.
    """
    count, width = clean.shape
    if width < 2 * count:
        return variance(cross_correlation(clean, perturbed), off_diagonal)
    first, second = standardise(clean), standardise(perturbed)
    diagonal = (first * second).mean(0)
    total = ((first @ first.T) * (second @ second.T)).sum() / count**2
    rest = total - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * rest


def projector(width: int, size: int, depth: int) -> nn.Module:
    """G of equation 11: `depth` bias-free linear maps, BatchNorm and ReLU between them.

    (B, width) to (B, size); depth 0 is the identity. The last normalisation is equation 11's.
    """
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers.append(nn.Linear(width if layer == 0 else size, size, bias=False))
        if layer + 1 < depth:
            layers += [nn.BatchNorm1d(size), nn.ReLU()]
    return nn.Sequential(*layers)
