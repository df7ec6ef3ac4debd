from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import digest
from robustbench_defenses.data.locate import FoundFile, KnownFile, Sums

CONTENT = b"0123456789" * 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(CONTENT)
    return path


def found(path: Path, **sums: object) -> FoundFile:
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest(), **sums}
    return FoundFile(KnownFile(path.name, Sums(**known)), path)  # type: ignore[arg-type]


def rewrite(path: Path, content: bytes) -> None:
    """Other content, the same modification time."""
    before = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before, before))


def test_success_is_remembered_until_the_file_changes(file: Path) -> None:
    other = CONTENT[::-1]
    digest.check_file(found(file))
    rewrite(file, other)
    digest.check_file(found(file))  # same size and time: trusted
    with pytest.raises(UserError, match="altered"):
        digest.check_file(found(file), fresh=True)
    os.utime(file, ns=(1, 1))
    with pytest.raises(UserError, match="altered"):
        digest.check_file(found(file))


def test_failure_is_not_remembered(file: Path) -> None:
    time = file.stat().st_mtime_ns
    rewrite(file, CONTENT[::-1])
    with pytest.raises(UserError):
        digest.check_file(found(file))
    rewrite(file, CONTENT)
    assert file.stat().st_mtime_ns == time
    digest.check_file(found(file))


def test_another_expectation_is_another_check(file: Path) -> None:
    digest.check_file(found(file))
    with pytest.raises(UserError, match="altered"):
        digest.check_file(found(file, sha256="0" * 64))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (CONTENT[:40], "is truncated: 40 of 100 bytes"),
        (CONTENT + b"x", "is altered: 101 bytes instead of 100"),
        (CONTENT[::-1], "is altered: its sha256 is"),
    ],
)
def test_a_wrong_file_is_named(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        digest.check_file(found(file), hint="fetch it")
    assert caught.value.message.startswith(f"{file} {said}")
    assert caught.value.hint == "fetch it"


def test_md5_decides_where_it_is_all_that_is_known(file: Path) -> None:
    right = hashlib.md5(CONTENT).hexdigest()
    assert digest.problem_of(file, Sums(md5=right)) is None
    assert "md5" in str(digest.problem_of(file, Sums(md5="0" * 32)))


def test_without_a_writable_cache(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    digest.check_file(found(file))
    rewrite(file, CONTENT[::-1])
    with pytest.raises(UserError, match="altered"):
        digest.check_file(found(file))
