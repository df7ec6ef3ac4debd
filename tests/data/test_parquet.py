from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import source

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 256, (5, 6, 7, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, **columns: list[Any]) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path)


def structs(part: slice) -> list[dict[str, Any]]:
    return [{"bytes": png(pixels), "path": None} for pixels in PIXELS[part]]


def test_a_folder_of_two_sets(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00002.parquet", image=structs(slice(2, 3)), label=[0])
    write(tmp_path / "train-00000-of-00002.parquet", image=structs(slice(0, 2)), label=[3, 1])
    write(tmp_path / "test-00000-of-00001.parquet", img=structs(slice(3, 5)), fine_label=[2, 1])
    name = f"parquet:{tmp_path}"
    train, test = source.load(name, "train"), source.load(name, "test")
    assert np.array_equal(train.images.permute(0, 2, 3, 1).numpy(), PIXELS[:3])
    assert train.labels.tolist() == [3, 1, 0]
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), PIXELS[3:])
    info = source.describe(name)
    assert (info.shape, info.classes) == ((3, 6, 7), 4)


def test_a_file_of_bare_bytes(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    write(path, image=[png(pixels[..., 0]) for pixels in PIXELS], label=[0, 1, 0, 1, 1])
    split = source.load(f"parquet:{path}", "test")
    assert np.array_equal(split.images[:, 0].numpy(), PIXELS[..., 0])
    with pytest.raises(UserError, match="has no training images"):
        source.load(f"parquet:{path}", "train")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"picture": [b""], "label": [0]}, "has no column image or img"),
        ({"image": [b""], "number": [0]}, "has no column label or labels or fine_label"),
        ({"image": [3], "label": [0]}, "row 0 has no encoded picture"),
        ({"image": [b"no picture"], "label": [0]}, "the picture of row 0 is no picture"),
        ({"image": [png(PIXELS[0])], "label": ["cat"]}, "labels have dtype <U3"),
    ],
)
def test_tables_that_do_not_do(tmp_path: Path, columns: dict[str, list[Any]], said: str) -> None:
    path = tmp_path / "mine.parquet"
    write(path, **columns)
    with pytest.raises(UserError, match=said) as caught:
        source.load(f"parquet:{path}", "test")
    assert "mine.parquet" in caught.value.message


def test_files_that_do_not_do(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="there is no file or folder"):
        source.load(f"parquet:{tmp_path}/none", "test")
    with pytest.raises(UserError, match=r"has no test\*\.parquet"):
        source.load(f"parquet:{tmp_path}", "test")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no table PAR1")
    with pytest.raises(UserError, match=r"test\.parquet is not a parquet file"):
        source.load(f"parquet:{tmp_path}", "test")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def refuse(name: str, *rest: Any) -> Any:
        assert name == "pyarrow.parquet"
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    from robustbench_defenses.data.parquet import Parquet

    with pytest.raises(UserError, match="parquet files need pyarrow") as caught:
        Parquet(str(tmp_path)).load("test", tmp_path)
    assert "robustbench-defenses[parquet]" in str(caught.value.hint)
