"""Tables of pictures: parquet:PATH.

As data hubs hand them out; reading them needs pyarrow. A file is the test set. A folder has files
whose names begin with `train` and with `test` (`test-00000-of-00001.parquet`), taken in the order
of their names. Columns: the pictures in `image` or `img` (encoded bytes, or a struct with a field
`bytes`), whole numbers from 0 in `label`, `labels` or `fine_label`. All pictures have one size;
where all are grey there is one channel, else three.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from .pictures import stack
from .source import Split, as_tensor

CARD = {
    "object": "Parquet",
    "version": 1,
    "prefix": "parquet",
    "params": {"path": {"help": "a parquet file, or a folder of train*.parquet and test*.parquet"}},
}

IMAGES = ("image", "img")
LABELS = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class Parquet:
    """The rows of parquet files."""

    path: str

    def load(self, split: str, where: Path) -> Split:
        """Images (N, C, H, W) uint8 and labels (N,); PATH is relative to the current folder."""
        import numpy as np

        read = _reader()
        cells: list[tuple[bytes, str]] = []
        labels: list[Any] = []
        for file in self._files(split):
            try:
                table = read(file)
            except Exception as error:  # pyarrow has a tree of its own, not all of it public
                raise UserError(f"{file} is not a parquet file: {error}") from None
            images = _column(table.column_names, IMAGES, file)
            cells += _pictures(table.column(images).to_pylist(), file)
            labels += table.column(_column(table.column_names, LABELS, file)).to_pylist()
        numbers = as_tensor(np.array(labels), self.path, "labels")
        return Split(as_tensor(stack(cells), self.path, "images"), numbers)

    def _files(self, split: str) -> list[Path]:
        path = Path(self.path).expanduser()
        if path.is_dir():
            files = sorted(path.glob(f"{split}*.parquet"))
            if not files:
                raise UserError(f"{path} has no {split}*.parquet")
            return files
        if not path.is_file():
            raise UserError(f"there is no file or folder {path}")
        if split == "train":
            raise UserError(
                f"{path} has no training images",
                hint="training needs a folder with train*.parquet and test*.parquet",
            )
        return [path]


def _reader() -> Any:
    try:
        module = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(
            "parquet files need pyarrow, which is not installed",
            hint="pip install 'robustbench-defenses[parquet]'",
        ) from None
    return module.read_table


def _column(names: list[str], wanted: tuple[str, ...], file: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UserError(
        f"{file} has no column {' or '.join(wanted)}", hint=f"its columns: {', '.join(names)}"
    )


def _pictures(cells: list[Any], file: Path) -> Iterator[tuple[bytes, str]]:
    for row, cell in enumerate(cells):
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise UserError(f"{file}: row {row} has no encoded picture in it")
        yield content, f"{file}: the picture of row {row}"
