"""Pictures of your own: folder:PATH.

One sub-folder for each class. `PATH/cat/1.png`, `PATH/dog/7.jpg`, ...: the pictures are the test
set. With sub-folders `train` and `test` in PATH, each with the classes in it, there is a training
set too. Classes are numbered in the order of their names, pictures come in the order of theirs. All
pictures have one size; where all are grey there is one channel, else three.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from .pictures import stack, suffixes
from .source import Split

CARD = {
    "object": "Folder",
    "version": 1,
    "prefix": "folder",
    "params": {"path": {"help": "a folder with one sub-folder of pictures for each class"}},
}


@dataclass(frozen=True)
class Folder:
    """The pictures below one folder."""

    path: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes' folders, sorted; those of training and test set together."""
        parts = [self._root(split) for split in ("train", "test")] if self._split() else [self.root]
        names = {folder.name for part in parts if part.is_dir() for folder in _folders(part)}
        if len(names) < 2:
            raise UserError(
                f"{self.root} has {len(names)} sub-folders with a class each, 2 are needed",
                hint="folder:PATH with PATH/CLASS/PICTURE, or PATH/train/CLASS/PICTURE",
            )
        return tuple(sorted(names))

    @property
    def classes(self) -> int:
        """The number of classes' folders."""
        return len(self.class_names)

    @property
    def root(self) -> Path:
        """The folder; one that is not there is a `UserError`."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            raise UserError(f"there is no folder {root}")
        return root

    def load(self, split: str, where: Path) -> Split:
        """Images (N, C, H, W) uint8 and labels (N,); PATH is relative to the current folder."""
        import torch

        if split == "train" and not self._split():
            raise UserError(
                f"{self.root} has no training images",
                hint="training needs the sub-folders train and test, each with the classes in it",
            )
        names, readable = self.class_names, suffixes()
        found = [
            (file, label)
            for label, name in enumerate(names)
            for file in _files(self._root(split) / name)
            if file.suffix.lower() in readable
        ]
        if not found:
            raise UserError(f"{self._root(split)} has no pictures in its sub-folders")
        images = stack((file, str(file)) for file, _ in found)
        return Split(torch.from_numpy(images), torch.tensor([label for _, label in found]))

    def _split(self) -> bool:
        return (self.root / "train").is_dir() and (self.root / "test").is_dir()

    def _root(self, split: str) -> Path:
        return self.root / split if self._split() else self.root


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")


def _files(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_file() and path.name[0] != ".")
