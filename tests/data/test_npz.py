from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import source

LABELS = np.array([0, 2, 1, 1])
DRAW = np.random.default_rng(0)
GREY = DRAW.integers(0, 256, (4, 5, 6)).astype(np.uint8)
COLOUR = DRAW.random((4, 3, 5, 6)).astype(np.float32)


def write(folder: Path, **arrays: Any) -> str:
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_grey_images_of_three_axes(tmp_path: Path) -> None:
    name = write(tmp_path, images=GREY, labels=LABELS)
    split = source.load(name, "test")
    assert split.images.dtype == torch.uint8
    assert np.array_equal(split.images[:, 0].numpy(), GREY)
    assert split.labels.tolist() == LABELS.tolist()
    assert split.labels.dtype == torch.int64
    info = source.describe(name)
    assert (info.name, info.shape, info.classes, dict(info.grids)) == (name, (1, 5, 6), 3, {})


def test_channels_first_and_last_are_the_same_images(tmp_path: Path) -> None:
    first = source.load(write(tmp_path, images=COLOUR, labels=LABELS), "test")
    last = source.load(write(tmp_path, images=COLOUR.transpose(0, 2, 3, 1), labels=LABELS), "test")
    assert np.array_equal(first.images.numpy(), COLOUR)
    assert torch.equal(first.images, last.images)
    assert first.digest == last.digest


def test_where_both_readings_are_possible_channels_come_first(tmp_path: Path) -> None:
    images = DRAW.random((4, 3, 5, 1))
    assert source.load(write(tmp_path, images=images, labels=LABELS), "test").images.shape == (
        4, 3, 5, 1,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["<f8", ">f4", "<f2"])
def test_floats_of_every_kind_become_float32(tmp_path: Path, kind: str) -> None:
    split = source.load(write(tmp_path, images=COLOUR.astype(kind), labels=LABELS), "test")
    assert split.images.dtype == torch.float32
    assert np.array_equal(split.images.numpy(), COLOUR.astype(kind).astype(np.float32))


@pytest.mark.parametrize("kind", ["uint8", "uint16", ">i4", "int64"])
def test_labels_of_every_whole_kind(tmp_path: Path, kind: str) -> None:
    split = source.load(write(tmp_path, images=GREY, labels=LABELS.astype(kind)), "test")
    assert split.labels.tolist() == [0, 2, 1, 1]


def test_training_needs_training_images(tmp_path: Path) -> None:
    name = write(tmp_path, images=GREY, labels=LABELS)
    with pytest.raises(UserError, match="has no training images"):
        source.load(name, "train")
    both = write(
        tmp_path, images=GREY, labels=LABELS, train_images=GREY[:2], train_labels=np.array([0, 6])
    )
    train = source.load(both, "train")
    assert np.array_equal(train.images[:, 0].numpy(), GREY[:2])
    assert train.labels.tolist() == [0, 6]
    assert source.describe(both).classes == 7


def test_classes_may_be_said(tmp_path: Path) -> None:
    assert source.describe(write(tmp_path, images=GREY, labels=LABELS, classes=10)).classes == 10
    with pytest.raises(UserError, match=r"label 2 \(image 1\), but there are 2 classes"):
        source.load(write(tmp_path, images=GREY, labels=LABELS, classes=2), "test")
    with pytest.raises(UserError, match="classes is not one whole number"):
        source.describe(write(tmp_path, images=GREY, labels=LABELS, classes=2.5))


NAN = COLOUR.copy()
NAN[2, 1, 1, 1] = np.nan
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"labels": LABELS}, "has no array 'images'"),
    "near name": ({"image": GREY, "labels": LABELS}, "has no array 'images'"),
    "no labels": ({"images": GREY}, "has no array 'labels'"),
    "two axes": ({"images": GREY[:, 0], "labels": LABELS}, "have shape (4, 6)"),
    "five axes": ({"images": COLOUR[None], "labels": LABELS[:1]}, "have shape (1, 4, 3, 5, 6)"),
    "channels": ({"images": DRAW.random((4, 9, 9, 4)), "labels": LABELS}, "have shape"),
    "length": ({"images": GREY, "labels": LABELS[:3]}, "4 images but 3 labels"),
    "negative": ({"images": GREY, "labels": LABELS - 1}, "label -1 (image 0) is negative"),
    "one-hot": ({"images": GREY, "labels": np.eye(4, dtype=int)}, "labels have shape (4, 4)"),
    "float labels": ({"images": GREY, "labels": LABELS / 2}, "labels have dtype float64"),
    "text labels": ({"images": GREY, "labels": LABELS.astype(str)}, "labels have dtype"),
    "nan": ({"images": NAN, "labels": LABELS}, "image 2 has values that are not finite"),
    "above": ({"images": GREY.astype(float), "labels": LABELS}, "not 0 to 1"),
    "below": ({"images": COLOUR - 0.5, "labels": LABELS}, "not 0 to 1"),
    "int images": ({"images": GREY.astype(int), "labels": LABELS}, "images have dtype int64"),
    "empty": ({"images": GREY[:0], "labels": LABELS[:0]}, "is empty"),
    "objects": (
        {"images": np.array([GREY[0], None], dtype=object), "labels": LABELS[:2]},
        "images is a pickled array of objects",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_with_one_sentence(tmp_path: Path, case: str) -> None:
    arrays, said = BAD[case]
    name = write(tmp_path, **arrays)
    with pytest.raises(UserError) as caught:
        source.load(name, "test")
    assert said in caught.value.message
    assert "mine.npz" in caught.value.message
    with pytest.raises(UserError):
        source.describe(name)


def test_values_up_to_255_get_the_likely_intention(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        source.load(write(tmp_path, images=GREY.astype(float), labels=LABELS), "test")
    assert "divide them by 255" in str(caught.value.hint)


def test_what_is_no_npz_file(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, images=GREY, labels=LABELS)
    cases = {"text.npz": b"hello", "cut.npz": whole.read_bytes()[:-40], "empty.npz": b""}
    for file, content in cases.items():
        (tmp_path / file).write_bytes(content)
    np.save(tmp_path / "one.npy", GREY)
    (tmp_path / "pickle.npz").write_bytes(b"\x80\x04K\x01.")
    for file in (*cases, "one.npy", "pickle.npz"):
        with pytest.raises(UserError, match=f"{file} is not an npz file"):
            source.load(f"npz:{tmp_path / file}", "test")
    with pytest.raises(UserError, match="No such file"):
        source.load(f"npz:{tmp_path / 'none.npz'}", "test")
    with pytest.raises(UserError, match="Is a directory"):
        source.load(f"npz:{tmp_path}", "test")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, images=GREY, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF  # inside the pixels: the archive's own checksum finds it
    path.write_bytes(content)
    with pytest.raises(UserError, match="images is damaged"):
        source.load(f"npz:{path}", "test")


def test_npz_alone_asks_for_a_file() -> None:
    for name in ("npz", "npz:", "npz: "):
        with pytest.raises(UserError) as caught:
            source.load(name, "test")
        assert caught.value.hint == "npz:FILE"
