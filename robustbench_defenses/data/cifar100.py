"""Photographs of a hundred kinds, 32x32 colour.

Krizhevsky 2009; the author states no licence and asks to be cited. The python version:
`cifar-100-python.tar.gz`, or its folder `cifar-100-python`, in `cifar100/` of the data folder or in
the data folder itself, as torchvision leaves them. Labels are the fine ones. Budgets and
augmentation as for CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .batches import load_batches
from .source import Split

CARD = {
    "object": "CIFAR100",
    "version": 1,
    "source": "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    "shape": [3, 32, 32],
    "classes": 100,
    "train": 50000,
    "test": 10000,
    "class_names": [
        "apple",
        "aquarium_fish",
        "baby",
        "bear",
        "beaver",
        "bed",
        "bee",
        "beetle",
        "bicycle",
        "bottle",
        "bowl",
        "boy",
        "bridge",
        "bus",
        "butterfly",
        "camel",
        "can",
        "castle",
        "caterpillar",
        "cattle",
        "chair",
        "chimpanzee",
        "clock",
        "cloud",
        "cockroach",
        "couch",
        "crab",
        "crocodile",
        "cup",
        "dinosaur",
        "dolphin",
        "elephant",
        "flatfish",
        "forest",
        "fox",
        "girl",
        "hamster",
        "house",
        "kangaroo",
        "keyboard",
        "lamp",
        "lawn_mower",
        "leopard",
        "lion",
        "lizard",
        "lobster",
        "man",
        "maple_tree",
        "motorcycle",
        "mountain",
        "mouse",
        "mushroom",
        "oak_tree",
        "orange",
        "orchid",
        "otter",
        "palm_tree",
        "pear",
        "pickup_truck",
        "pine_tree",
        "plain",
        "plate",
        "poppy",
        "porcupine",
        "possum",
        "rabbit",
        "raccoon",
        "ray",
        "road",
        "rocket",
        "rose",
        "sea",
        "seal",
        "shark",
        "shrew",
        "skunk",
        "skyscraper",
        "snail",
        "snake",
        "spider",
        "squirrel",
        "streetcar",
        "sunflower",
        "sweet_pepper",
        "table",
        "tank",
        "telephone",
        "television",
        "tiger",
        "tractor",
        "train",
        "trout",
        "tulip",
        "turtle",
        "wardrobe",
        "whale",
        "willow_tree",
        "wolf",
        "woman",
        "worm",
    ],
    "licence": "none stated",
    "grids": {
        "linf": [0.0, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0],
        "l1": [0.0, 10.0, 50.0, 100.0, 200.0],
    },
    "model": "resnet18",
    "training": {"augment": "crop_flip"},
    "torchvision": "CIFAR100",
    "folders": ["cifar100", "."],
    "files": {
        "cifar-100-python.tar.gz": {
            "bytes": 169001437,
            "md5": "eb9058c3a382ffc7106e4002c42a8d85",
            "sha256": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            "unpacked": {
                "cifar-100-python/train": {"md5": "16019d7e3df5f24257cddd939b257f8d"},
                "cifar-100-python/test": {"md5": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            },
        },
    },
}


@dataclass(frozen=True)
class CIFAR100:
    """The python batches of CIFAR-100."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 3, 32, 32) uint8 and labels (N,), found under the data folder `where`."""
        return load_batches("cifar100", CARD, [f"cifar-100-python/{split}"], "fine_labels", where)
