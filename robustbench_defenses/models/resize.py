"""Images that are too small for a network are made larger inside it, so that budgets keep their
meaning: attacks and verdicts see the images as they are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def at_least(images: Tensor, side: int) -> Tensor:
    """Images (N, C, H, W), bilinearly resized to (max(H, side), max(W, side)) where smaller."""
    height, width = images.shape[2:]
    if min(height, width) >= side:
        return images
    size = (max(height, side), max(width, side))
    return F.interpolate(images, size, mode="bilinear", align_corners=False)
