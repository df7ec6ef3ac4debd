from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_defenses.cli.main import main
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import source
from robustbench_defenses.data.pictures import decode

DRAW = np.random.default_rng(0)


def picture(path: Path, channels: int = 3, size: tuple[int, int] = (5, 7)) -> np.ndarray:
    """Write a lossless picture; returns its pixels (H, W[, C])."""
    shape = size if channels == 1 else (*size, channels)
    pixels = DRAW.integers(0, 256, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_one_folder_is_the_test_set(tmp_path: Path) -> None:
    files = ["dog/b.png", "cat/2.bmp", "dog/a.PNG", "cat/1.png"]
    pixels = {file: picture(tmp_path / file) for file in files}
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / ".hidden.png").write_text("no picture")
    (tmp_path / ".git").mkdir()
    name = f"folder:{tmp_path}"
    split = source.load(name, "test")
    assert split.labels.tolist() == [0, 0, 1, 1]
    for image, file in zip(split.images, ["cat/1.png", "cat/2.bmp", "dog/a.PNG", "dog/b.png"]):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[file])
    info = source.describe(name)
    assert (info.shape, info.classes, info.class_names) == ((3, 5, 7), 2, ("cat", "dog"))
    with pytest.raises(UserError, match="has no training images"):
        source.load(name, "train")


def test_training_and_test_set(tmp_path: Path) -> None:
    for file in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png", "test/a/2.png"):
        picture(tmp_path / file, channels=1)
    name = f"folder:{tmp_path}"
    assert source.load(name, "train").labels.tolist() == [0, 1, 2]
    test = source.load(name, "test")
    assert test.labels.tolist() == [0, 2]
    assert test.images.shape == (2, 1, 5, 7)
    assert source.describe(name).classes == 3


def test_grey_among_colour_and_other_modes(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")
    grey = picture(tmp_path / "b/1.png", channels=1)
    Image.fromarray(grey).convert("1").save(tmp_path / "b/2.png")
    Image.new("RGBA", (7, 5), (1, 2, 3, 255)).save(tmp_path / "b/3.png")
    Image.new("P", (7, 5), 3).save(tmp_path / "b/4.png")
    images = source.load(f"folder:{tmp_path}", "test").images
    assert images.shape == (5, 3, 5, 7)
    assert all(np.array_equal(images[1, c].numpy(), grey) for c in range(3))
    assert set(images[2].unique().tolist()) <= {0, 255}
    assert images[3].flatten(1)[:, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("a/size.png", "size.png is 9x5 pixels, those before it 7x5"),
        ("a/deep.png", "deep.png has more than 8 bits a channel"),
        ("a/clear.png", "clear.png is transparent in places"),
        ("a/text.png", "text.png is no picture that can be read"),
        ("a/cut.png", "cut.png is no picture that can be read"),
    ],
)
def test_pictures_that_do_not_do(tmp_path: Path, file: str, said: str) -> None:
    whole = tmp_path / "a/1.png"
    picture(whole)
    picture(tmp_path / "b/1.png")
    path = tmp_path / file
    match path.stem:
        case "size":
            picture(path, size=(5, 9))
        case "deep":
            Image.fromarray(np.zeros((5, 7), np.uint16)).save(path)
        case "clear":
            Image.new("RGBA", (7, 5), (1, 2, 3, 254)).save(path)
        case "text":
            path.write_text("no picture")
        case "cut":
            path.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(UserError, match=said):
        source.load(f"folder:{tmp_path}", "test")


def test_bytes_and_files_decode_alike(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "x.png")
    assert np.array_equal(decode((tmp_path / "x.png").read_bytes(), "x"), pixels)
    assert np.array_equal(decode(tmp_path / "x.png", "x"), pixels)


def test_folders_that_do_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        source.load(f"folder:{tmp_path}/nowhere", "test")
    with pytest.raises(UserError, match="has 0 sub-folders with a class each"):
        source.load(f"folder:{tmp_path}", "test")
    for name in "ab":
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="has no pictures in its sub-folders"):
        source.load(f"folder:{tmp_path}", "test")
    assert main(["train", "nt", "--dataset", "folder:", "--results", str(tmp_path / "r")]) == 2
    assert "folder:PATH" in capsys.readouterr().err
