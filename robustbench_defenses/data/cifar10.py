"""Photographs of ten kinds, 32x32 colour.

Krizhevsky 2009; the author states no licence and asks to be cited. The python version:
`cifar-10-python.tar.gz`, or its folder `cifar-10-batches-py`, in `cifar10/` of the data folder or
in the data folder itself, as torchvision leaves them. Budgets are those of the AFD paper, table A2
(L2: its C&W row). Training crops after padding by 4 pixels and flips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .batches import load_batches
from .source import Split

CARD = {
    "object": "CIFAR10",
    "version": 1,
    "source": "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    "shape": [3, 32, 32],
    "classes": 10,
    "train": 50000,
    "test": 10000,
    "class_names": [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
    "licence": "none stated",
    "grids": {
        "linf": [0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0],
        "l1": [0.0, 10.0, 50.0, 100.0, 200.0],
    },
    "model": "resnet18",
    "training": {"augment": "crop_flip"},
    "torchvision": "CIFAR10",
    "folders": ["cifar10", "."],
    "files": {
        "cifar-10-python.tar.gz": {
            "bytes": 170498071,
            "md5": "c58f30108f718f92721af3b95e74349a",
            "sha256": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            "unpacked": {
                "cifar-10-batches-py/data_batch_1": {"md5": "c99cafc152244af753f735de768cd75f"},
                "cifar-10-batches-py/data_batch_2": {"md5": "d4bba439e000b95fd0a9bffe97cbabec"},
                "cifar-10-batches-py/data_batch_3": {"md5": "54ebc095f3ab1f0389bbae665268c751"},
                "cifar-10-batches-py/data_batch_4": {"md5": "634d18415352ddfa80567beed471001a"},
                "cifar-10-batches-py/data_batch_5": {"md5": "482c414d41f54cd18b22e5b47cb7c3cb"},
                "cifar-10-batches-py/test_batch": {"md5": "40351d587109b95175f43aff81a1287e"},
            },
        },
    },
    "label_digests": {
        "train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
}

_FOLDER = "cifar-10-batches-py"
_BATCHES = {
    "train": [f"{_FOLDER}/data_batch_{number}" for number in range(1, 6)],
    "test": [f"{_FOLDER}/test_batch"],
}


@dataclass(frozen=True)
class CIFAR10:
    """The python batches of CIFAR-10."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 3, 32, 32) uint8 and labels (N,), found under the data folder `where`."""
        return load_batches("cifar10", CARD, _BATCHES[split], "labels", where)
