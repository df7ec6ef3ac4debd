"""Small data sets in the formats of the real ones, under their names."""

from __future__ import annotations

import hashlib
import importlib
import io
import lzma
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .builders import swap_card

COUNTS = {"train": 20, "test": 12}


@dataclass
class Made:
    """A small data set: `files` as published, `unpacked` as an archive's content lies on disk."""

    name: str
    images: dict[str, np.ndarray]
    """by split: (N, 3, H, W) uint8"""
    labels: dict[str, np.ndarray]
    files: dict[str, bytes] = field(default_factory=dict)
    unpacked: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)

    def put(self, folder: Path, unpacked: bool = False) -> None:
        """Write the files into a folder."""
        for name, content in (self.unpacked if unpacked else self.files).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def made(monkeypatch: pytest.MonkeyPatch, name: str) -> Made:
    """A small data set of the format of `name`, in its place."""
    draw = np.random.default_rng(0)
    side = 96 if name == "stl10" else 32
    classes = 100 if name == "cifar100" else 10
    small = Made(
        name,
        {s: draw.integers(0, 256, (n, 3, side, side)).astype(np.uint8) for s, n in COUNTS.items()},
        {s: draw.permutation(np.arange(n) * 7 % classes) for s, n in COUNTS.items()},
    )
    FORMATS[name](small)
    about = {file: sums(content) for file, content in small.files.items()}
    if small.unpacked:
        (only,) = about
        about[only]["unpacked"] = {part: sums(body) for part, body in small.unpacked.items()}
    module = importlib.import_module(f"robustbench_defenses.data.{name}")
    small.card = swap_card(monkeypatch, name, module.CARD, {"files": about, **COUNTS})
    return small


def sums(content: bytes) -> dict[str, Any]:
    return {
        "bytes": len(content),
        "md5": hashlib.md5(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def tar(files: dict[str, bytes], mode: str) -> bytes:
    """A tar archive with its folders, as the publishers make them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for folder in dict.fromkeys(name.rpartition("/")[0] for name in files):
            if folder:
                entry = tarfile.TarInfo(folder)
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def python2_batch(pixels: np.ndarray, labels: np.ndarray, label_key: str) -> bytes:
    """A batch as Python 2 and numpy 1 pickled it: raw byte strings, protocol 2."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def long(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + b"K\x00\x85" + text(b"b")
        + b"\x87R(K\x01" + number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
        + b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
        + b"NNN" + number(-1) + number(-1) + b"K\x00tb\x89" + long(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return (
        b"\x80\x02}(" + text(b"batch_label") + text(b"training batch 1 of 5")
        + text(label_key.encode()) + numbers + text(b"data") + array
        + text(b"filenames") + b"](" + text(b"domestic_cat_s_000907.png") + b"e" + b"u."
    )  # fmt: skip


def _cifar10(small: Made) -> None:
    images = {split: array.reshape(len(array), -1) for split, array in small.images.items()}
    for number in range(5):
        part = slice(4 * number, 4 * number + 4)
        batch = python2_batch(images["train"][part], small.labels["train"][part], "labels")
        small.unpacked[f"cifar-10-batches-py/data_batch_{number + 1}"] = batch
    batch = python2_batch(images["test"], small.labels["test"], "labels")
    small.unpacked["cifar-10-batches-py/test_batch"] = batch
    small.files["cifar-10-python.tar.gz"] = tar(
        {"cifar-10-batches-py/batches.meta": b"", **small.unpacked}, "w:gz"
    )


def _cifar100(small: Made) -> None:
    for split, array in small.images.items():
        batch = python2_batch(array.reshape(len(array), -1), small.labels[split], "fine_labels")
        small.unpacked[f"cifar-100-python/{split}"] = batch
    small.files["cifar-100-python.tar.gz"] = tar(small.unpacked, "w:gz")


def _svhn(small: Made) -> None:
    from scipy.io import savemat

    for split, array in small.images.items():
        buffer = io.BytesIO()
        labels = np.where(small.labels[split] == 0, 10, small.labels[split]).astype(np.uint8)
        content = {"X": array.transpose(2, 3, 1, 0), "y": labels[:, None]}
        savemat(buffer, content, do_compression=True)
        small.files[f"{split}_32x32.mat"] = buffer.getvalue()


def _stl10(small: Made) -> None:
    for split, array in small.images.items():
        columns = array.transpose(0, 1, 3, 2)
        small.unpacked[f"stl10_binary/{split}_X.bin"] = columns.tobytes()
        labels = (small.labels[split] + 1).astype(np.uint8)
        small.unpacked[f"stl10_binary/{split}_y.bin"] = labels.tobytes()
    small.files["stl10_binary.tar.gz"] = tar(
        {**small.unpacked, "stl10_binary/unlabeled_X.bin": b"\0" * 99}, "w:gz"
    )


def _cifar10_part(small: Made) -> None:
    for split, array in small.images.items():
        labels = small.labels[split].astype(np.uint8)[:, None]
        records = np.concatenate([labels, array.reshape(len(array), -1)], 1)
        small.files[f"{split}_part.bin.xz"] = lzma.compress(records.tobytes())


def _cifar10_jpeg(small: Made) -> None:
    from PIL import Image

    for split, array in small.images.items():
        pictures = {}
        for place, pixels in enumerate(array):
            buffer = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "JPEG", quality=90)
            pictures[f"{place:05d}_{small.labels[split][place]}.jpg"] = buffer.getvalue()
            decoded = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
            small.images[split][place] = decoded.transpose(2, 0, 1)
        backwards = dict(reversed(pictures.items()))
        small.files[f"{split}.tar.xz"] = tar(backwards, "w:xz")


FORMATS: dict[str, Callable[[Made], None]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
    "stl10": _stl10,
    "cifar10_part": _cifar10_part,
    "cifar10_jpeg": _cifar10_jpeg,
}
