"""Images of other classes, from which attacks may start where random noise does not succeed."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64  # rows of the table of distances at a time


def nearest_donors(images: Tensor, predicted: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """For each image (N, C, H, W) the position (N,) int64 of the nearest one, in L2, that counts.

    An image counts where its predicted class (N,) is not the row's label (N,), or is the row's
    target (N,) where that is not -1. Rows without any get their own position. Among equals the
    first one is taken; apart from that the answer does not depend on the order of the images.
    """
    if len(images) == 0:
        return predicted
    flat = images.flatten(1).double()
    size = flat.square().sum(1)
    places = []
    for chunk in torch.split(torch.arange(len(flat), device=flat.device), CHUNK):
        aim = target[chunk, None]
        counts = torch.where(aim >= 0, predicted == aim, predicted != labels[chunk, None])
        # ||a - b||^2 without the ||a||^2 that a whole row shares.
        far = torch.addmm(size[None], flat[chunk], flat.T, alpha=-2).masked_fill(~counts, torch.inf)
        places.append(torch.where(counts.any(1), far.argmin(1), chunk))
    return torch.cat(places)
