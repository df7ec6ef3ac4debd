"""Handwritten digits, 8x8 grey, embedded.

They come with scikit-learn, there is nothing to fetch. The UCI set "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak 1998), its test part. Pixels are counts from 0 to 16, here
divided by 16: exact in float32. The last 360 images are the test set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .source import Split

CARD = {
    "object": "Digits",
    "version": 1,
    "source": "Alpaydin and Kaynak 1998, UCI Machine Learning Repository",
    "shape": [1, 8, 8],
    "classes": 10,
    "train": 1437,
    "test": 360,
    "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "licence": "CC BY 4.0",
    "grids": {
        "linf": [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4],
        "l2": [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0],
        "l1": [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    },
    "digests": {
        "train": "62edf78d67cb437940c933c5be8478dcf0ecfb5d909d1234772d7ced7c6d965f",
        "test": "4cca3626644de9279d58342e1c544368512af166a1e762e01d94236bda82c033",
    },
}

TEST_IMAGES = 360
HIGHEST = 16  # the largest pixel value


@dataclass(frozen=True)
class Digits:
    """The embedded digits."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 1, 8, 8) float32 in [0, 1]; `where` is of no importance."""
        import torch
        from sklearn.datasets import load_digits

        content = load_digits()
        part = slice(None, -TEST_IMAGES) if split == "train" else slice(-TEST_IMAGES, None)
        images = torch.from_numpy(content.images[part]).to(torch.float32)[:, None] / HIGHEST
        return Split(images, torch.from_numpy(content.target[part]).long())
