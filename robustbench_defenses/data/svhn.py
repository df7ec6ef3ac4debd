"""House numbers from street views, 32x32 colour.

Netzer et al. 2011; for non-commercial use. Two MATLAB files, `train_32x32.mat` and
`test_32x32.mat`, in `svhn/` of the data folder or in the data folder itself, as torchvision leaves
them.
The AICR paper attacks at 0.03 and the Linf grid lies around that; the other grids are CIFAR-10's.
Training does not augment: a flipped digit is another sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from .archive import checked_file
from .source import Split

CARD = {
    "object": "SVHN",
    "version": 1,
    "source": "Netzer, Wang, Coates, Bissacco, Wu and Ng 2011",
    "shape": [3, 32, 32],
    "classes": 10,
    "train": 73257,
    "test": 26032,
    "class_names": ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    "licence": "non-commercial use",
    "grids": {
        "linf": [0.0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.06],
        "l2": [0.0, 0.5, 1.0, 1.5, 2.0],
        "l1": [0.0, 10.0, 50.0, 100.0, 200.0],
    },
    "model": "resnet18",
    "torchvision": "SVHN",
    "folders": ["svhn", "."],
    "files": {
        "train_32x32.mat": {
            "bytes": 182040794,
            "md5": "e26dedcc434d2e4c54c9b2d4a06d8373",
            "sha256": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        },
        "test_32x32.mat": {
            "bytes": 64275384,
            "md5": "eb5a983be6a315427106f1b164d9cef3",
            "sha256": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
    },
}


@dataclass(frozen=True)
class SVHN:
    """The cropped digits (format 2) of SVHN."""

    def load(self, split: str, where: Path) -> Split:
        """Images (N, 3, 32, 32) uint8 and labels (N,), found under the data folder `where`."""
        import torch
        from scipy.io import loadmat

        path = checked_file("svhn", CARD, f"{split}_32x32.mat", where)
        try:
            content = loadmat(path, variable_names=["X", "y"])
            pixels, labels = content["X"], content["y"].reshape(-1)
        except Exception as error:  # scipy raises whatever a damaged file happens to lead to
            raise UserError(f"{path} is not a MATLAB file of SVHN: {error}") from None
        if pixels.ndim != 4 or pixels.shape[:3] != (32, 32, 3) or pixels.shape[3] != len(labels):
            raise UserError(f"{path}: {pixels.shape} images and {len(labels)} labels do not fit")
        images = torch.from_numpy(pixels.transpose(3, 2, 0, 1).copy())
        # The file calls the digit 0 "10".
        return Split(images, torch.from_numpy(labels.astype("int64") % 10))
