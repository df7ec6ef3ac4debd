from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data.idx import read_idx

from .builders import idx_bytes

ARRAY = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_what_was_written(tmp_path: Path, zipped: bool) -> None:
    content = idx_bytes(ARRAY)
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(content) if zipped else content)
    read = read_idx(path, 3)
    assert read.dtype == np.uint8
    assert np.array_equal(read, ARRAY)
    assert read.flags.writeable


WHOLE = idx_bytes(ARRAY)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is not an idx file: it begins with 0x3c68746d"),
        (idx_bytes(np.zeros(5)), "magic number 0x00000801"),
        (b"\x00\x00\x0d\x03" + WHOLE[4:], "magic number 0x00000d03"),
        (WHOLE[:9], "truncated inside its header"),
        (WHOLE[:-1], "announces 24 bytes (2 x 3 x 4), and 23 follow"),
        (WHOLE + b"\x00", "and 25 follow"),
        (gzip.compress(WHOLE, mtime=0)[:-9], "gzip stream has no end"),
        (gzip.compress(WHOLE, mtime=0)[:-8] + b"\x00" * 8, "is damaged"),
        (b"\x1f\x8b" + b"\x00" * 20, "is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad-idx"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_idx(path, 3)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_idx(tmp_path, 3)
