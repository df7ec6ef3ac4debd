"""Data sets by name: `load` gives checked arrays, `describe` their shape, classes and eps grids.

A name is a registered data set, `PREFIX:ARGUMENT` of one that takes an argument (`npz:FILE`), or
`FILE.py:NAME`. Everything that comes back from any of them passes the same checks here, so that
a data set file need not repeat them.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..core import identity, plugins, registry
from ..core.errors import UserError
from .locate import data_dir as resolve_data_dir

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "test")
_FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class Split:
    """One split of a data set, in file order.

    `images`: (N, C, H, W) uint8, or float32 in [0, 1]; `labels`: (N,) int64; `digest`: SHA-256 over
    both as decoded, the identity of what was read. A data set file leaves `digest` out.
    """

    images: Tensor
    labels: Tensor
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataInfo:
    """What is known of a data set: `shape` (C, H, W), number of `classes`, published eps `grids`.

    `grids`: norm -> budgets, empty where nobody published any; `class_names`: by label, or empty.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    grids: Mapping[str, list[float]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


class DataSet(Protocol):
    """What the dataclass of a data set file offers.

    It may also have `shape`, `classes`, `grids` and `class_names`, as attributes or in its CARD;
    without them shape and classes are read off the arrays.
    """

    def load(self, split: str, where: Path) -> Split:
        """The split "train" or "test"; `where`: the data folder (`--data`)."""
        ...


def load(name: str, split: str, data_dir: str | Path | None = None) -> Split:
    """The split "train" or "test" of a data set; `data_dir` as `--data`.

    Unknown names, missing, truncated or altered files, and arrays that are no images and labels are
    `UserError`s.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is neither train nor test")
    entry, dataset = _open(name)
    with _foreign(entry):
        raw = dataset.load(split, resolve_data_dir(data_dir))
    checked = _checked(raw, f"{name} {split}", _declared(entry, dataset))
    known = entry.card.get("digests", {}).get(split)
    if known is not None and checked.digest != known:
        raise UserError(
            f"{name} {split} is altered: the digest of its images and labels is "
            f"{checked.digest[:12]}..., not {known[:12]}..."
        )
    known = entry.card.get("label_digests", {}).get(split)
    if known is not None and labels_digest(checked.labels) != known:
        raise UserError(f"{name} {split} is altered: its labels are not those of the card")
    return checked


def describe(name: str, data_dir: str | Path | None = None) -> DataInfo:
    """Shape, classes and eps grids of a data set; files are read only if nobody declared them."""
    entry, dataset = _open(name)
    about = _declared(entry, dataset)
    shape, classes = about["shape"], about["classes"]
    if shape is None or classes is None:
        test = load(name, "test", data_dir)
        shape = shape or tuple(test.images.shape[1:])
        if classes is None:
            highest = int(test.labels.max())
            # A data set for evaluation alone has no training images.
            with contextlib.suppress(UserError):
                highest = max(highest, int(load(name, "train", data_dir).labels.max()))
            classes = highest + 1
    full = name if ":" in name else entry.name
    channels, height, width = shape
    return DataInfo(
        full, (channels, height, width), classes, about["grids"], tuple(about["class_names"])
    )


def to_float(images: Tensor) -> Tensor:
    """`images` as float32 in [0, 1]: uint8 divided by 255, floats as they are."""
    import torch

    if images.dtype == torch.uint8:
        # By a tensor, because CUDA multiplies by the rounded reciprocal of a plain number: so an
        # image has the same values on every device.
        return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))
    return images.to(torch.float32)


def take(split: Split, index: Tensor) -> Split:
    """The examples `index` (M,) int64 of a split, in that order, as a split of its own."""
    images, labels = split.images[index], split.labels[index]
    return Split(images, labels, split_digest(images, labels))


def split_digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 over type, shape and bytes of images (N, C, H, W) and labels (N,) int64."""
    return identity.tensors_digest({"images": images, "labels": labels})


def labels_digest(labels: Tensor) -> str:
    """SHA-256 over labels (N,) as unsigned bytes: for data whose pixels depend on a decoder."""
    import torch

    return hashlib.sha256(labels.to(torch.uint8).numpy().tobytes()).hexdigest()


def as_tensor(values: Any, name: str, what: str) -> Tensor:
    """`values` (an array of numbers or a tensor) as a tensor on the CPU; else a `UserError`."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise UserError(f"{name}: {what} have dtype {array.dtype}, which is no array of numbers")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    try:
        # Torch wants memory that may be written, without negative strides.
        return torch.from_numpy(np.require(native, requirements=["C", "W"]))
    except TypeError:
        raise UserError(f"{name}: {what} have dtype {array.dtype}, which torch lacks") from None


def _open(name: str) -> tuple[registry.Entry, DataSet]:
    """The entry a name leads to, and its object (not yet read)."""
    entry = registry.find("dataset", name)
    prefix = entry.card.get("prefix")
    if prefix is None:
        dataset = entry.create()
    else:
        _, _, argument = name.partition(":")
        argument = argument.strip()
        if not argument:
            raise UserError(f"{name} needs to be told which", hint=f"{prefix}:{_metavar(entry)}")
        dataset = entry.create(**{entry.params[0].name: argument})
    if not callable(getattr(dataset, "load", None)):
        raise UserError(
            f"{name} is not a data set: it has no load(split, where)",
            hint="docs/architecture.md shows a data set file",
        )
    return entry, dataset


def _metavar(entry: registry.Entry) -> str:
    return entry.params[0].name.upper()


@contextlib.contextmanager
def _foreign(entry: registry.Entry) -> Iterator[None]:
    """Around code that is not ours: its faults are told with file and line."""
    if entry.origin == "rrd":
        yield
        return
    # stdout belongs to our answer.
    with plugins.user_code(entry.source_file), contextlib.redirect_stdout(sys.stderr):
        yield


def _declared(entry: registry.Entry, dataset: DataSet) -> dict[str, Any]:
    """What object or CARD say of the data; None (or empty) where neither does."""
    empty: dict[str, Any] = {"shape": None, "classes": None, "grids": {}, "class_names": ()}
    with _foreign(entry):
        about = {
            key: getattr(dataset, key, None) or entry.card.get(key) or nothing
            for key, nothing in empty.items()
        }
    shape = about["shape"]
    if shape is not None and not (len(shape) == 3 and all(isinstance(n, int) for n in shape)):
        raise UserError(f"{entry.name}: shape {shape!r} is not (channels, height, width)")
    return about


def _checked(raw: Any, name: str, about: Mapping[str, Any]) -> Split:
    """`raw` as a `Split` that keeps every promise, or a `UserError` that says which it breaks."""
    if not (hasattr(raw, "images") and hasattr(raw, "labels")):
        raise UserError(
            f"{name}: load(split, where) gave {type(raw).__name__}, not a Split",
            hint="from robustbench_defenses.data.source import Split",
        )
    images = _images(as_tensor(raw.images, name, "images"), name)
    labels = _labels(as_tensor(raw.labels, name, "labels"), name, len(images))
    shape, classes = about["shape"], about["classes"]
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise UserError(
            f"{name}: images have shape {tuple(images.shape[1:])}, declared is {tuple(shape)}"
        )
    if classes is not None and int(labels.max()) >= classes:
        raise UserError(
            f"{name}: label {int(labels.max())} (image {int(labels.argmax())}), but there are "
            f"{classes} classes, counted from 0"
        )
    return Split(images, labels, split_digest(images, labels))


def _images(images: Tensor, name: str) -> Tensor:
    import torch

    if images.dim() != 4:
        raise UserError(
            f"{name}: images have {images.dim()} axes {tuple(images.shape)}; (N, C, H, W) is wanted"
        )
    if 0 in images.shape:
        raise UserError(f"{name} is empty: images have shape {tuple(images.shape)}")
    kind = str(images.dtype).removeprefix("torch.")
    if kind == "uint8":
        return images.contiguous()
    if kind not in _FLOATS:
        raise UserError(
            f"{name}: images have dtype {kind}", hint="uint8 (0 to 255) or float in [0, 1]"
        )
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bad.any():
        raise UserError(f"{name}: image {int(bad.int().argmax())} has values that are not finite")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        hint = "divide them by 255, or keep them uint8" if low >= 0 and 1 < high <= 255 else None
        raise UserError(f"{name}: image values go from {low:g} to {high:g}, not 0 to 1", hint=hint)
    return images.to(torch.float32).contiguous()


def _labels(labels: Tensor, name: str, count: int) -> Tensor:
    import torch

    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        kind = str(labels.dtype).removeprefix("torch.")
        raise UserError(f"{name}: labels have dtype {kind}", hint="whole numbers from 0")
    if labels.dim() != 1:
        raise UserError(
            f"{name}: labels have shape {tuple(labels.shape)}; one number per image is wanted"
        )
    if len(labels) != count:
        raise UserError(f"{name}: {count} images but {len(labels)} labels")
    labels = labels.to(torch.int64).contiguous()
    lowest = int(labels.argmin())
    if int(labels[lowest]) < 0:
        raise UserError(f"{name}: label {int(labels[lowest])} (image {lowest}) is negative")
    return labels
