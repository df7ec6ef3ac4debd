"""Articles of clothing, 28x28 grey.

Xiao, Rasul and Vollgraf 2017; copyright 2017 Zalando SE. Made to replace MNIST by
something harder. Four idx files, gzipped or not, in `fashion_mnist/` of the data folder or in the
layouts that torchvision writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .idx import load_idx
from .source import Split

CARD = {
    "object": "FashionMNIST",
    "version": 1,
    "source": "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
    "shape": [1, 28, 28],
    "classes": 10,
    "train": 60000,
    "test": 10000,
    "class_names": [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ],
    "licence": "MIT",
    "grids": {
        "linf": [0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
        "l1": [0.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0],
    },
    "torchvision": "FashionMNIST",
    "folders": ["fashion_mnist", "fashion_mnist/FashionMNIST/raw", "FashionMNIST/raw"],
    "files": {
        "train-images-idx3-ubyte.gz": {
            "bytes": 26421880,
            "md5": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "sha256": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "unzipped": {
                "bytes": 47040016,
                "sha256": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            },
        },
        "train-labels-idx1-ubyte.gz": {
            "bytes": 29515,
            "md5": "25c81989df183df01b3e8a0aad5dffbe",
            "sha256": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "unzipped": {
                "bytes": 60008,
                "sha256": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            },
        },
        "t10k-images-idx3-ubyte.gz": {
            "bytes": 4422102,
            "md5": "bef4ecab320f06d8554ea6380940ec79",
            "sha256": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "unzipped": {
                "bytes": 7840016,
                "sha256": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            },
        },
        "t10k-labels-idx1-ubyte.gz": {
            "bytes": 5148,
            "md5": "bb300cfdad3c16e7a12a480ee83cd310",
            "sha256": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "unzipped": {
                "bytes": 10008,
                "sha256": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            },
        },
    },
    "digests": {
        "train": "b128892c6d585418457290ec8b117d8b8ad5d51d9b560689a3ed7c3386bfcadb",
        "test": "75eab6296094fd03eb18273652d37c2be9a5f6cce5e57eb9cd967d7a171ecd6d",
    },
}


@dataclass(frozen=True)
class FashionMNIST:
    """The idx files of Fashion-MNIST."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 1, 28, 28) uint8 and labels (N,), found under the data folder `where`."""
        return load_idx("fashion_mnist", CARD, split, where)
