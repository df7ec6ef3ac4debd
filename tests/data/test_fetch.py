from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.core.errors import Interrupted, UserError
from robustbench_defenses.data import fetch as module
from robustbench_defenses.data import source, torchvision_shim
from robustbench_defenses.data.fetch import fetch

from .builders import NAMES, Server, Small, serving, small_mnist

FIRST = NAMES[0]  # the training images: the first file that is fetched


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Small:
    monkeypatch.delenv("RRD_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return small_mnist(monkeypatch)


@pytest.fixture
def server(small: Small) -> Iterator[Server]:
    with serving(Server({f"/mnist/{name}": small.files[name] for name in NAMES})) as running:
        yield running


def left(root: Path) -> list[str]:
    """Every file under the data folder."""
    return sorted(path.name for path in root.rglob("*") if path.is_file())


def size(small: Small, name: str = FIRST) -> int:
    return len(small.files[name])


def test_everything_arrives_and_loads(small: Small, server: Server, tmp_path: Path) -> None:
    root = tmp_path / "data"
    done = fetch("mnist", root, mirror=server.url)
    assert [file.downloaded for file in done] == [True] * 4
    assert left(root) == sorted(NAMES)
    for file in done:
        assert file.path.read_bytes() == small.files[file.path.name]
    assert len(source.load("mnist", "train", root)) == 20
    asked = len(server.asked)
    again = fetch("mnist", root, mirror=server.url)
    assert [file.downloaded for file in again] == [False] * 4
    assert len(server.asked) == asked


def test_only_what_is_missing_or_altered(small: Small, server: Server, tmp_path: Path) -> None:
    small.put(tmp_path / "MNIST/raw", unzipped=True)
    (tmp_path / "MNIST/raw" / NAMES[1].removesuffix(".gz")).unlink()
    (tmp_path / "MNIST/raw" / NAMES[2].removesuffix(".gz")).write_bytes(b"altered")
    done = {file.path.name: file.downloaded for file in fetch("mnist", tmp_path, mirror=server.url)}
    assert done == {
        NAMES[0].removesuffix(".gz"): False,
        NAMES[1]: True,
        NAMES[2]: True,
        NAMES[3].removesuffix(".gz"): False,
    }
    for split in source.SPLITS:
        source.load("mnist", split, tmp_path)


def test_a_dropped_connection_is_resumed_at_once(
    small: Small, server: Server, tmp_path: Path
) -> None:
    server.behaviour[f"/mnist/{FIRST}"] = ["drop:100", "drop:50", "whole"]
    fetch("mnist", tmp_path, mirror=server.url)
    asked = [wanted for path, wanted in server.asked if path.endswith(FIRST)]
    assert asked == [None, "bytes=100-", "bytes=150-"]
    assert (tmp_path / "mnist" / FIRST).read_bytes() == small.files[FIRST]


def test_the_next_command_goes_on_where_the_last_one_stopped(
    small: Small, server: Server, tmp_path: Path
) -> None:
    path = f"/mnist/{FIRST}"
    server.behaviour[path] = ["drop:100", "drop:0"]
    with pytest.raises(UserError) as caught:
        fetch("mnist", tmp_path, mirror=server.url)
    assert "interrupted after 100 of" in caught.value.message
    assert caught.value.hint == "the same command goes on after 100 bytes"
    assert left(tmp_path) == [f"{FIRST}.part"]
    server.behaviour[path] = ["whole"]
    server.asked.clear()
    fetch("mnist", tmp_path, mirror=server.url)
    assert server.asked[0] == (path, "bytes=100-")
    assert left(tmp_path) == sorted(NAMES)
    assert (tmp_path / "mnist" / FIRST).read_bytes() == small.files[FIRST]


def test_a_server_without_ranges_starts_again(small: Small, server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.behaviour[f"/mnist/{FIRST}"] = ["drop:100", "whole"]
    fetch("mnist", tmp_path, mirror=server.url)
    assert [wanted for _, wanted in server.asked[:2]] == [None, "bytes=100-"]
    assert (tmp_path / "mnist" / FIRST).read_bytes() == small.files[FIRST]


def test_a_part_of_something_else_is_thrown_away(
    small: Small, server: Server, tmp_path: Path
) -> None:
    """Too long, complete and whole, or with another beginning: the file that results is right."""
    for stale in (b"x" * 100, b"x" * 10_000, small.files[FIRST], b"x" * size(small)):
        root = tmp_path / str(len(stale)) / stale[:1].hex()
        (root / "mnist").mkdir(parents=True)
        (root / "mnist" / f"{FIRST}.part").write_bytes(stale)
        fetch("mnist", root, mirror=server.url)
        assert (root / "mnist" / FIRST).read_bytes() == small.files[FIRST]
        assert left(root) == sorted(NAMES)


def test_a_server_whose_file_ends_before_our_part(
    small: Small, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / f"{FIRST}.part").write_bytes(small.files[FIRST][:200])
    server.files[f"/mnist/{FIRST}"] = small.files[FIRST][:150]  # answers 416, then is too short
    with pytest.raises(UserError, match="its file is truncated: 150 of"):
        fetch("mnist", tmp_path, mirror=server.url)
    assert left(tmp_path) == []


@pytest.mark.parametrize("case", ["truncated", "longer", "altered", "404"])
def test_a_wrong_file_leaves_nothing(
    small: Small, server: Server, tmp_path: Path, case: str
) -> None:
    path, content = f"/mnist/{FIRST}", small.files[FIRST]
    root = tmp_path / "new" / "data"
    said = {
        "truncated": f"its file is truncated: 70 of {size(small):,} bytes",
        "longer": f"its file is altered: {size(small) + 1:,} of {size(small):,} bytes",
        "altered": "what it sends is altered: its sha256 is",
        "404": "404 Not Found",
    }[case]
    if case == "truncated":
        server.behaviour[path] = ["short:70"]
    elif case == "404":
        del server.files[path]
    else:
        server.files[path] = content + b"x" if case == "longer" else content[:-1] + b"?"
    with pytest.raises(UserError) as caught:
        fetch("mnist", root, mirror=server.url)
    assert f"cannot fetch mnist/{FIRST} (127.0.0.1:" in caught.value.message
    assert said in caught.value.message
    assert not (tmp_path / "new").exists()


def test_no_network(small: Small, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        fetch("mnist", tmp_path / "empty", mirror=f"http://127.0.0.1:{port}")
    assert f"127.0.0.1:{port}: no connection" in caught.value.message
    assert "by hand" in str(caught.value.hint)
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_existing_file_survives_a_failed_fetch(
    small: Small, server: Server, tmp_path: Path
) -> None:
    small.put(tmp_path / "mnist")
    path = tmp_path / "mnist" / FIRST
    path.write_bytes(b"altered")
    server.files.clear()
    with pytest.raises(UserError, match="404"):
        fetch("mnist", tmp_path, mirror=server.url)
    assert path.read_bytes() == b"altered"


def test_the_second_mirror_goes_on_where_the_first_gave_up(
    small: Small, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's mirrors in order, and its checksums beside ours."""
    sums = {name: small.card["files"][name]["md5"] for name in NAMES}
    mirrors = [f"{server.url}/gone/", f"{server.url}/first/", f"{server.url}/mnist"]
    for name in NAMES:
        server.files[f"/first/{name}"] = small.files[name]
        server.behaviour[f"/first/{name}"] = ["drop:80", "drop:0"]
    monkeypatch.setattr(torchvision_shim, "origin", lambda name: (mirrors, sums))
    fetch("mnist", tmp_path)
    assert server.asked[:4] == [
        (f"/gone/{FIRST}", None),
        (f"/first/{FIRST}", None),
        (f"/first/{FIRST}", "bytes=80-"),
        (f"/mnist/{FIRST}", "bytes=80-"),
    ]
    assert left(tmp_path) == sorted(NAMES)


def test_two_lists_of_checksums_must_agree(
    small: Small, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = ([server.url], {FIRST: "0" * 32})
    monkeypatch.setattr(torchvision_shim, "origin", lambda name: origin)
    with pytest.raises(UserError, match="this torchvision lists MD5 0000"):
        fetch("mnist", tmp_path / "data")
    assert server.asked == []


def test_the_mirror_of_the_environment(
    small: Small, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRD_MIRROR", server.url + "/")
    assert len(fetch("mnist", tmp_path)) == 4
    with pytest.raises(UserError, match=re.escape("mirror 'ftp://x' is not an http(s) address")):
        fetch("mnist", tmp_path / "other", mirror="ftp://x")


def test_a_second_process_is_told(small: Small, server: Server, tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    part = tmp_path / "mnist" / f"{FIRST}.part"
    with (
        module._alone(part),
        pytest.raises(UserError, match=r"another process is fetching .*\.part"),
    ):
        fetch("mnist", tmp_path, mirror=server.url)
    assert len(fetch("mnist", tmp_path, mirror=server.url)) == 4


def test_a_file_that_another_process_has_just_finished(tmp_path: Path) -> None:
    """Opened before the other's rename, locked after it: the open file is the other's result."""
    import fcntl

    part, target = tmp_path / "x.gz.part", tmp_path / "x.gz"
    real = fcntl.flock

    def late(handle: Any, how: int) -> None:
        os.replace(part, target)
        real(handle, how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        with pytest.raises(UserError, match="has just fetched"), module._alone(part):
            pass
    assert target.exists()


def test_ctrl_c_keeps_what_arrived(
    small: Small, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient:
        def start(self, task: str, total: int) -> None: ...

        def update(self, done: int, note: str = "") -> None:
            raise KeyboardInterrupt

        def finish(self, note: str = "") -> None: ...

    monkeypatch.setattr(module, "_CHUNK", 64)
    with pytest.raises(Interrupted, match="the same command goes on"):
        fetch("mnist", tmp_path, mirror=server.url, progress=Impatient())
    assert (tmp_path / "mnist" / f"{FIRST}.part").read_bytes() == small.files[FIRST][:64]
    fetch("mnist", tmp_path, mirror=server.url)
    assert left(tmp_path) == sorted(NAMES)


def test_a_folder_that_cannot_be_made(small: Small, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        fetch("mnist", tmp_path / "file", mirror=server.url)


def test_what_is_embedded_needs_no_fetching(tmp_path: Path) -> None:
    assert fetch("digits", tmp_path) == []
