from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from robustbench_defenses.cli.main import main
from tests.data.builders import NAMES, Server, Small, serving, small_mnist

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def small(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Small:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RRD_MIRROR", raising=False)
    monkeypatch.delenv("RRD_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return small_mnist(monkeypatch)


@pytest.fixture
def server(small: Small) -> Iterator[Server]:
    with serving(Server({f"/mnist/{name}": small.files[name] for name in NAMES})) as running:
        yield running


def states(capsys: Captured, *arguments: str) -> dict[str, str]:
    """What `rrd data status --json` says of each data set."""
    assert main(["data", "status", "--json", *arguments]) == 0
    return {one["name"]: one["state"] for one in json.loads(capsys.readouterr().out)["datasets"]}


def test_status_of_every_state(small: Small, capsys: Captured) -> None:
    every = states(capsys)
    assert every.pop("digits") == "embedded"
    assert {"mnist", "fashion_mnist", "cifar10"} <= set(every)
    assert set(every.values()) == {"missing"}
    small.put(Path("data/mnist"))
    assert states(capsys, "mnist") == {"mnist": "here"}
    damaged = Path("data/mnist") / NAMES[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert states(capsys, "mnist") == {"mnist": "altered"}
    damaged.unlink()
    assert states(capsys, "mnist") == {"mnist": "missing"}
    assert states(capsys, "mnist", "--data", "elsewhere") == {"mnist": "missing"}


def test_status_for_people(small: Small, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    small.put(Path("elsewhere/mnist"))
    monkeypatch.setenv("RRD_DATA", "elsewhere")
    assert main(["data", "status"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split() == [
        "data", "set", "state", "train", "+", "test", "size", "licence", "where",
    ]  # fmt: skip
    row = next(line for line in said.out.splitlines() if line.startswith(" mnist"))
    assert row.split() == [
        "mnist",
        "here",
        "20",
        "+",
        "10",
        "0.0",
        "MB",
        "none",
        "stated",
        "elsewhere/mnist",
    ]
    assert said.err.split()[:3] == ["rrd", "data", "fetch"]
    assert "fashion_mnist" in said.err.split()
    # What is here, and what nobody publishes, is not offered.
    assert not {"mnist", "cifar10_part"} & set(said.err.split())
    assert main(["data", "status", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_an_altered_file_is_named_by_status(small: Small, capsys: Captured) -> None:
    small.put(Path("data/mnist"))
    (Path("data/mnist") / NAMES[2]).write_bytes(b"short")
    assert main(["data", "status", "mnist"]) == 0
    said = capsys.readouterr()
    assert f"data/mnist/{NAMES[2]} is truncated: 5 of" in said.out
    assert "rrd data fetch mnist" in said.err


def test_verify_reads_everything_again(small: Small, capsys: Captured) -> None:
    small.put(Path("data/mnist"))
    assert main(["data", "verify", "mnist"]) == 0
    assert "holds" in capsys.readouterr().out
    path = Path("data/mnist") / NAMES[0]
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    os.utime(path, ns=(before, before))
    assert states(capsys, "mnist") == {"mnist": "here"}  # trusted: nothing shows that it changed
    assert main(["data", "verify", "mnist"]) == 1
    said = capsys.readouterr().out
    assert "does not hold" in said
    assert f"{path} is altered" in said
    assert main(["data", "verify", "mnist", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["datasets"][0]["verdict"] == "does not hold"
    assert len(document["problems"]) == 1


def test_verify_holds_what_was_decoded_against_the_card(small: Small, capsys: Captured) -> None:
    small.put(Path("data/mnist"))
    small.card["test"] = 11
    assert main(["data", "verify", "mnist"]) == 1
    assert "mnist test has 10 images, not 11" in capsys.readouterr().out


def test_verify_blames_what_is_missing_only_when_asked_for(small: Small, capsys: Captured) -> None:
    assert main(["data", "verify"]) == 0
    assert "missing" in capsys.readouterr().out
    assert main(["data", "verify", "mnist"]) == 1
    assert "mnist is not here: no train-images" in capsys.readouterr().out
    small.put(Path("data/mnist"))
    (Path("data/mnist") / NAMES[3]).unlink()
    assert main(["data", "verify"]) == 1
    assert f"{NAMES[3]} is missing" in capsys.readouterr().out


def test_fetch(small: Small, server: Server, capsys: Captured) -> None:
    arguments = ["data", "fetch", "mnist", "--mirror", server.url]
    assert main(arguments) == 0
    assert "mnist: 4 files fetched and verified" in capsys.readouterr().out
    assert states(capsys, "mnist") == {"mnist": "here"}
    assert main([*arguments, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["datasets"][0]["files"]
    assert [file["downloaded"] for file in files] == [False] * 4
    assert main(arguments) == 0
    assert "already here, 4 files in data/mnist" in capsys.readouterr().out


def test_fetch_interrupted_then_resumed(small: Small, server: Server, capsys: Captured) -> None:
    path = f"/mnist/{NAMES[0]}"
    server.behaviour[path] = ["drop:90", "drop:0"]
    arguments = ["data", "fetch", "mnist", "--mirror", server.url, "--quiet"]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0].startswith(f"error: cannot fetch mnist/{NAMES[0]} (127.0.0.1:")
    assert said.err.splitlines()[1] == "  hint: the same command goes on after 90 bytes"
    server.behaviour[path] = ["whole"]
    assert main(arguments) == 0
    assert (path, "bytes=90-") in server.asked


def test_fetch_of_what_is_not_there(small: Small, server: Server, capsys: Captured) -> None:
    server.files.clear()
    assert main(["data", "fetch", "mnist", "--mirror", server.url]) == 2
    assert "404 Not Found" in capsys.readouterr().err
    assert not Path("data").exists()


def test_fetch_of_the_embedded(small: Small, capsys: Captured) -> None:
    assert main(["data", "fetch", "digits"]) == 0
    assert capsys.readouterr().out == "digits: embedded, nothing to fetch\n"


@pytest.mark.parametrize("command", ["status", "verify", "fetch"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pnist", "unknown dataset 'pnist'"),
        ("npz:mine.npz", "npz:mine.npz is not a registered data set"),
    ],
)
def test_bad_names(command: str, name: str, said: str, capsys: Captured) -> None:
    assert main(["data", command, name]) == 2
    assert said in capsys.readouterr().err


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from robustbench_defenses.cli.main import main; main(['data', 'status']);"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"
