"""Files are whole or not there, whatever happens to the writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.files import (
    atomic_open,
    check_writable,
    read_json,
    write_bytes,
    write_json,
    write_npz,
    write_text,
)

# Writes a first half, says so, and waits to be killed.
KILLED = """
import sys, time
from pathlib import Path
from robustbench_defenses.core.files import atomic_open
with atomic_open(Path(sys.argv[1])) as handle:
    handle.write(b"half")
    handle.flush()
    print("ready", flush=True)
    time.sleep(60)
"""
# Writes its own letter again and again.
WRITER = """
import sys
from pathlib import Path
from robustbench_defenses.core.files import write_text
for _ in range(60):
    write_text(Path(sys.argv[1]), sys.argv[2] * 20000)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(path: Path, error: BaseException) -> None:
    """A writer that fails half-way."""
    with atomic_open(path) as handle:
        handle.write(b"half")
        raise error


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\x00\xff")
    write_text(tmp_path / "deep" / "er" / "b.txt", "äö\n")
    write_json(tmp_path / "c.json", {"ε": [1, 0.5, None, "x"]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "deep" / "er" / "b.txt").read_text(encoding="utf-8") == "äö\n"
    assert read_json(tmp_path / "c.json") == {"ε": [1, 0.5, None, "x"]}
    assert (tmp_path / "c.json").read_bytes().endswith(b"}\n")
    assert names(tmp_path) == ["a", "c.json", "deep"]


def test_npz_round_trip(tmp_path: Path) -> None:
    arrays = {"index": np.arange(5), "broken": np.eye(3, dtype=bool), "d": np.array([np.inf, 0.1])}
    write_npz(tmp_path / "r.npz", arrays)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == sorted(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(archive[name], value)
            assert archive[name].dtype == value.dtype


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"):
        interrupted(path, RuntimeError("stop"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_any_way_out_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        interrupted(tmp_path / "a.txt", error())
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [float("nan"), {"a": [float("inf")]}, {"b": object()}])
def test_json_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, content: object
) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == 1
    assert names(tmp_path) == ["a.json"]


def test_killed_in_the_middle_nothing_is_there_under_the_name(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists()
    assert not list(tmp_path.glob("*.json"))  # a left-over has another ending and a leading dot
    write_json(tmp_path / "other.json", 1)
    assert len(names(tmp_path)) == 2  # another file's write leaves it alone
    write_json(path, {"whole": True})  # the next try is not hindered, and cleans up
    assert read_json(path) == {"whole": True}
    assert names(tmp_path) == ["other.json", "result.json"]


def test_a_write_under_way_survives_another_write(tmp_path: Path) -> None:
    path = tmp_path / "result [1].json"  # brackets mean something in patterns
    command = [sys.executable, "-c", KILLED.replace("sleep(60)", "sleep(1)"), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        write_text(path, "first")
        assert path.read_text() == "first"
        assert process.wait() == 0
    assert path.read_text() == "half"
    assert names(tmp_path) == [path.name]


def test_concurrent_writers_never_mix(tmp_path: Path) -> None:
    """Three processes write one name; every read sees one whole content."""
    path = tmp_path / "shared.txt"
    write_text(path, "z" * 20000)
    letters = "abc"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), x]) for x in letters]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_text()
        assert len(content) == 20000
        assert len(set(content)) == 1
        seen.add(content[0])
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert path.read_text()[0] in letters
    assert seen <= {*letters, "z"}
    assert names(tmp_path) == ["shared.txt"]


def test_writers_within_one_process_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "shared.txt"
    with atomic_open(path) as slow:
        slow.write(b"slow, ")
        with atomic_open(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"but whole")
    assert path.read_bytes() == b"slow, but whole"
    assert names(tmp_path) == ["shared.txt"]


def test_a_file_in_place_of_a_folder_is_a_user_error(tmp_path: Path) -> None:
    write_text(tmp_path / "plain", "x")
    with pytest.raises(UserError, match="cannot write to") as caught:
        write_text(tmp_path / "plain" / "a.txt", "y")
    assert "--results" in str(caught.value.hint)


def test_a_folder_in_place_of_the_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "a.txt", "y")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_without_permission_is_a_user_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot write to"):
            write_text(tmp_path / "a.txt", "y")
        with pytest.raises(UserError, match="no permission"):
            check_writable(tmp_path / "results")
    finally:
        tmp_path.chmod(0o700)


def test_check_writable_makes_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert names(tmp_path) == []
    write_text(tmp_path / "plain", "x")
    with pytest.raises(UserError, match="is not a folder"):
        check_writable(tmp_path / "plain" / "results")


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_text(tmp_path / "a.txt", "y")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not valid JSON"), (b"", "not valid JSON"), (b"\xff\xfe{}", "not valid JSON")],
)
def test_damaged_json_is_a_user_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_json(path)
    assert str(path) in caught.value.message


def test_missing_json_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)


def test_json_is_plain_text_that_others_can_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": [0.1]}
    assert list(read_json(tmp_path / "a.json")) == ["b", "a"]  # the writer's order is kept
