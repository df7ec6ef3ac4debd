"""Guides of feature attacks: features of other images, towards which an image is to be moved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocol import Answer, Features, Query, Rows

if TYPE_CHECKING:
    from .caller import Caller

POOL_SIZE = 500  # images of a pool: enough to find a near one, cheap to ask about


@dataclass(frozen=True)
class Pool:
    """Images (P, C, H, W) in [0, 1] that an attacker has at hand, and their labels (P,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> Pool:
        """The first of many images."""
        return cls(images[:POOL_SIZE], labels[:POOL_SIZE])


class Gallery:
    """`features` (P, D) of a pool's images and their `classes` (P,).

    No dataclass on purpose: rows that share a gallery are taken apart and joined, it is not.
    """

    def __init__(self, features: Tensor, classes: Tensor) -> None:
        self.features, self.classes = features, classes

    @property
    def centres(self) -> Gallery:
        """The mean of each class that is there."""
        classes, member = torch.unique(self.classes, return_inverse=True)
        total = self.features.new_zeros((len(classes), self.features.shape[1]))
        total.index_add_(0, member, self.features)
        count = member.bincount(minlength=len(classes))
        return Gallery(total / count[:, None].to(total), classes)

    def guides(
        self, own: Tensor, labels: Tensor, target: Tensor, rank: Tensor, kind: str = "euclidean"
    ) -> tuple[Tensor, Tensor]:
        """A guide for every row, and where there is one: features (B, D) and (B,) bool.

        The nearest entry to `own` (B, D) of every other class is a candidate, and the one of the
        class that is the nearest but `rank` (B,) is taken (counted around); with a `target` (B,)
        class (-1: none) the nearest entry of that class. Rows without a guide get their own
        features.
        """
        if len(self.features) == 0:
            return own, torch.zeros_like(labels, dtype=torch.bool)
        far = distances(own, self.features, kind)
        aim = target[:, None]
        fits = torch.where(aim >= 0, self.classes == aim, self.classes != labels[:, None])
        far = far.masked_fill(~fits, torch.inf)
        classes, member = torch.unique(self.classes, return_inverse=True)
        nearest = far.new_full((len(own), len(classes)), torch.inf)
        nearest.scatter_reduce_(1, member.expand_as(far), far, "amin")  # (B, classes)
        order = nearest.argsort(dim=1, stable=True)
        count = torch.isfinite(nearest).sum(1)
        chosen = order.gather(1, (rank % count.clamp_min(1))[:, None])
        place = far.masked_fill(member != chosen, torch.inf).argmin(1)
        has = count > 0
        return torch.where(has[:, None], self.features[place], own), has


def plain_rows(images: Tensor, labels: Tensor) -> Rows:
    """Rows that want to know something of `images` (N, C, H, W) and attack nothing."""
    none = torch.zeros_like(labels)
    return Rows(
        example=torch.arange(len(labels), device=labels.device),
        images=images,
        labels=labels,
        eps=torch.zeros(len(labels), dtype=images.dtype, device=images.device),
        target=none - 1,
        key=none.int(),
        run=none,
        rivals=none[:, None][:, :0],
    )


def gallery_of(pool: Pool, seen: Answer) -> Gallery:
    """The images of a pool that the subject, as `seen`, puts into their own class."""
    assert seen.features is not None
    right = seen.decided.argmax(1) == pool.labels
    return Gallery(seen.features[right], pool.labels[right])


def look(
    caller: Caller, taps: tuple[str, ...], images: Tensor, chosen: Tensor, pool: Pool | None
) -> tuple[Tensor, Gallery | None]:
    """Features (N, D) of the images `chosen` (M,) of a block (0 for the others), and of a pool."""
    wish = Features(taps)
    rows = replace(plain_rows(images[chosen], chosen), example=chosen)
    seen = caller.answer(Query(rows.images, "logits", features=wish), rows, None)
    assert seen.features is not None
    own = seen.features.new_zeros((len(images), seen.features.shape[1]))
    own[chosen] = seen.features
    if pool is None:
        return own, None
    rows = plain_rows(pool.images, pool.labels)
    none = torch.zeros_like(rows.example)
    other = replace(caller, numbers=rows.example, queries=none)
    seen = other.answer(Query(rows.images, "logits", features=wish), rows, None)
    return own, gallery_of(pool, seen)


def distances(own: Tensor, others: Tensor, kind: str) -> Tensor:
    """Distances (B, P) of features (B, D) and (P, D): Euclidean, or 1 - cosine."""
    if kind == "cosine":
        return 1 - F.normalize(own, dim=1) @ F.normalize(others, dim=1).T
    return torch.cdist(own, others)


def apart(features: Tensor, guide: Tensor, kind: str) -> Tensor:
    """How far (B,) features (B, D) of one tap are from a guide: Euclidean distance as a share of
    the guide's length, or 1 - cosine. At distance 0 the slope is 0, not NaN."""
    if kind == "cosine":
        return 1 - F.cosine_similarity(features, guide, dim=1)
    tiny = torch.finfo(features.dtype).tiny
    length = torch.linalg.vector_norm(guide, dim=1).clamp_min(tiny**0.5)
    far: Tensor = ((features - guide).square().sum(1) + tiny).sqrt() / length
    return far
