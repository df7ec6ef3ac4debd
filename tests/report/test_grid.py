"""Image grids: sharp pixels, stated scale, marked predictions, nothing cut off."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.report import grid
from tests.report.pictures import collisions


def _example(n: int = 3, channels: int = 1, size: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    clean = rng.random((n, channels, size, size)).astype(np.float32)
    adversarial = np.clip(clean + rng.choice([-0.1, 0.1], clean.shape), 0, 1)
    labels = np.arange(n)
    return {
        "clean": clean,
        "adversarial": adversarial,
        "labels": labels,
        "before": labels,
        "after": labels + 1,
        "distances": np.full(n, 0.1),
    }


def _figure(**arrays: Any) -> Any:
    said = [np.asarray(arrays[name]) for name in ("labels", "before", "after")]
    clean, moved = (np.moveaxis(arrays[name], 1, -1) for name in ("clean", "adversarial"))
    return grid._figure(clean, moved, said, np.asarray(arrays["distances"]), "linf", None, None)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32)])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_writes_a_picture(tmp_path: Path, channels: int, size: int, suffix: str) -> None:
    path = tmp_path / "deep" / f"grid{suffix}"
    assert grid.attack_grid(**_example(channels=channels, size=size), path=path) == path
    first = path.read_bytes()
    grid.attack_grid(**_example(channels=channels, size=size), path=path)
    assert path.read_bytes() == first


def test_tensors_and_arrays_give_the_same_picture(tmp_path: Path) -> None:
    arrays = _example()
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in arrays.items()}
    grid.attack_grid(**arrays, path=tmp_path / "a.png")
    grid.attack_grid(**tensors, path=tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_small_images_keep_sharp_pixels(tmp_path: Path) -> None:
    arrays = _example(n=1)
    arrays["clean"] = (np.indices((8, 8)).sum(0) % 2)[None, None].astype(np.float32)
    arrays["adversarial"] = arrays["clean"]
    grid.attack_grid(**arrays, path=tmp_path / "a.png")
    picture = matplotlib.image.imread(io.BytesIO((tmp_path / "a.png").read_bytes()))[..., :3]
    height, width = picture.shape[:2]
    top = int((grid._HEAD + grid._CAPTION) * 160)
    left, cell = int(grid._LEFT * 160), int(grid._CELL * 160)
    board = picture[top + 8 : top + cell - 8, left + 8 : left + cell - 8]
    # Nearest upscaling: next to no greys between black and white squares.
    between = ((board > 0.1) & (board < 0.9)).mean()
    assert 0.4 < board.mean() < 0.6
    assert between < 0.01
    assert (top + cell, left + cell) < (height, width)


def test_perturbations_share_one_stated_scale() -> None:
    arrays = _example()
    arrays["adversarial"] = arrays["clean"].copy()
    arrays["clean"][:] = 0.5
    arrays["adversarial"][:] = 0.5
    arrays["adversarial"][0, 0, 0, 0] = 0.7
    arrays["adversarial"][1, 0, 0, 0] = 0.4
    drawing = _figure(**arrays)
    shown = [np.asarray(axes.images[0].get_array()) for axes in drawing.axes]
    assert shown[1][0, 0] == pytest.approx(1.0)
    assert shown[4][0, 0] == pytest.approx(0.25)
    assert shown[1][3, 3] == pytest.approx(0.5)
    texts = [text.get_text() for axes in drawing.axes for text in axes.texts]
    assert "perturbation\n×2.5\naround grey" in texts
    assert grid.perturbation_scale(np.zeros(3), np.zeros(3)) == 1.0


def test_wrong_predictions_are_marked_and_only_those() -> None:
    arrays = _example()
    arrays["before"] = np.array([0, 7, 2])
    arrays["after"] = np.array([3, 7, 2])
    arrays["distances"] = np.array([0.1, 0.0, np.inf])
    drawing = _figure(**arrays)
    captions = [[text.get_text() for text in axes.texts[:2]] for axes in drawing.axes]
    assert captions[0::3] == [["label 0", "0"], ["label 1", "7 ✗"], ["label 2", "2"]]
    assert captions[2::3] == [["Linf 0.100", "3 ✗"], ["Linf 0.000", "7 ✗"], ["holds", "2"]]
    assert "1 of 2 rightly classified are fooled" in drawing.texts[1].get_text()


@pytest.mark.parametrize("n", [1, 3, 8, 11])
def test_nothing_overlaps_or_is_cut_off(n: int) -> None:
    assert collisions(_figure(**_example(n=n))) == []


def test_bad_input_is_refused(tmp_path: Path) -> None:
    arrays = _example()
    with pytest.raises(UserError, match="unknown kind of picture"):
        grid.attack_grid(**arrays, path=tmp_path / "a.jpg")
    with pytest.raises(UserError, match="cannot draw 65 examples"):
        grid.attack_grid(**_example(n=65), path=tmp_path / "a.png")
    with pytest.raises(ValueError, match="equal examples"):
        grid.attack_grid(**(arrays | {"after": np.arange(2)}), path=tmp_path / "a.png")
    with pytest.raises(ValueError, match="images have shape"):
        grid.attack_grid(**(arrays | {"clean": np.zeros((3, 2, 8, 8))}), path=tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
