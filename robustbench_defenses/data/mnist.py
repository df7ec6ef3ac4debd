"""Handwritten digits, 28x28 grey.

LeCun, Bottou, Bengio and Haffner 1998; the authors state no licence and ask to be cited. Four idx
files, gzipped or not, in `mnist/` of the data folder or in the layouts that torchvision writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .idx import load_idx
from .source import Split

CARD = {
    "object": "MNIST",
    "version": 1,
    "source": "LeCun, Bottou, Bengio and Haffner 1998",
    "shape": [1, 28, 28],
    "classes": 10,
    "train": 60000,
    "test": 10000,
    "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "licence": "none stated",
    "grids": {
        "linf": [0.0, 0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0],
        "l1": [0.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0],
    },
    "torchvision": "MNIST",
    "folders": ["mnist", "mnist/MNIST/raw", "MNIST/raw"],
    "files": {
        "train-images-idx3-ubyte.gz": {
            "bytes": 9912422,
            "md5": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "sha256": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "unzipped": {
                "bytes": 47040016,
                "sha256": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            },
        },
        "train-labels-idx1-ubyte.gz": {
            "bytes": 28881,
            "md5": "d53e105ee54ea40749a09fcbcd1e9432",
            "sha256": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "unzipped": {
                "bytes": 60008,
                "sha256": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            },
        },
        "t10k-images-idx3-ubyte.gz": {
            "bytes": 1648877,
            "md5": "9fb629c4189551a2d022fa330f9573f3",
            "sha256": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "unzipped": {
                "bytes": 7840016,
                "sha256": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            },
        },
        "t10k-labels-idx1-ubyte.gz": {
            "bytes": 4542,
            "md5": "ec29112dd5afa0611ce80d1b7f02629c",
            "sha256": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "unzipped": {
                "bytes": 10008,
                "sha256": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            },
        },
    },
    "digests": {
        "train": "87a8b612cd730e04ac05bffe590c49c1adaf9910a13f643cd79a8b7dbabe33f7",
        "test": "ad9c148ba25b5e5d1f6cc0709e48819c484037d57b7f6e840ee2ca76214f2009",
    },
}


@dataclass(frozen=True)
class MNIST:
    """The idx files of MNIST."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 1, 28, 28) uint8 and labels (N,), found under the data folder `where`."""
        return load_idx("mnist", CARD, split, where)
