"""What the gradient attacks share: steepest directions, uniform starts, step sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import rng
from ..core.norms import add_inwards, per_row, project
from ..engine.protocol import Rows


def steepest(gradient: Tensor, points: Tensor, norm: str, quantile: float = 0.99) -> Tensor:
    """The direction of unit norm (B, C, H, W) that raises the loss fastest, to first order.

    Linf: the sign; L2: the normalised gradient; L1: equal steps along the largest entries that
    have room in the box (SLIDE: Tramer and Boneh 2019), the share 1 - `quantile` of the pixels.
    A zero gradient gives a zero direction.
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        # Scaled by the largest entry first: the gradient of a saturated loss may be 1e-30 long, and
        # its squares would vanish.
        largest = gradient.flatten(1).abs().amax(1).clamp_min(torch.finfo(gradient.dtype).tiny)
        scaled = gradient / per_row(largest, gradient)
        length = scaled.flatten(1).norm(dim=1)
        return scaled / per_row(length.clamp_min(1e-12), gradient)
    blocked = ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))
    size = gradient.abs().masked_fill(blocked, 0).flatten(1)
    kept = max(1, round(size.shape[1] * (1 - quantile)))
    smallest = size.topk(kept, dim=1).values[:, -1:]
    chosen = (size >= smallest) & (size > 0)
    direction = gradient.flatten(1).sign() * chosen
    return (direction / chosen.sum(1, keepdim=True).clamp_min(1)).view_as(gradient)


def uniform_start(rows: Rows, norm: str) -> Tensor:
    """Points (B, C, H, W) uniform in each row's ball around its image, then clipped to the box."""
    images = rows.images
    shape = tuple(images.shape[1:])
    if norm == "linf":
        noise = rng.uniform(rows.key, shape, images.dtype).mul_(2).sub_(1)
    elif norm == "l2":
        # A Gaussian direction at radius U^(1/d): uniform in the ball.
        direction = rng.normal(rows.key, shape, images.dtype)
        radius = rng.uniform(rng.fold(rows.key, 1), (1,), images.dtype)[:, 0]
        size = images[0].numel()
        length = direction.flatten(1).norm(dim=1).clamp_min(1e-12)
        noise = direction * per_row(radius ** (1 / size) / length, images)
    elif norm == "l1":
        # Spacings of exponential numbers: |delta_i| = E_i / (E_1 + ... + E_{d+1}).
        size = images[0].numel()
        exponential = -torch.log1p(-rng.uniform(rows.key, (size + 1,), images.dtype))
        share = exponential[:, :-1] / exponential.sum(1, keepdim=True)
        signs = rng.uniform(rng.fold(rows.key, 1), (size,), images.dtype) < 0.5
        noise = torch.where(signs, -share, share).view_as(images)
        return add_inwards(images, noise.mul_(per_row(rows.eps, images))).clamp_(0, 1)
    else:
        raise ValueError(f"unknown norm {norm!r}")
    return noise.mul_(per_row(rows.eps, images)).add_(images).clamp_(0, 1)


def step_sizes(rows: Rows, absolute: float | None, relative: float) -> Tensor:
    """Step size (B,) in pixel units: `absolute` where given, else `relative` times eps."""
    if absolute is not None:
        return torch.full_like(rows.eps, absolute)
    return rows.eps * relative


def ascend(
    points: Tensor, gradient: Tensor, step: Tensor, rows: Rows, norm: str, quantile: float = 0.99
) -> Tensor:
    """One projected step of length `step` (B,) up the loss."""
    if norm == "linf":
        moved = torch.addcmul(points, gradient.sign(), per_row(step, points))
        radius = per_row(rows.eps, points)
        # max and min in this order keep exactly zero eps exactly at the image.
        moved = torch.maximum(moved, rows.images - radius, out=moved)
        return torch.minimum(moved, rows.images + radius, out=moved).clamp_(0, 1)
    moved = points + steepest(gradient, points, norm, quantile) * per_row(step, points)
    return project(moved, rows.images, rows.eps, norm)
