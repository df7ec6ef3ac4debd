"""Code from outside: `FILE.py:NAME`, and the entry points of installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from robustbench_defenses.core import plugins, registry
from robustbench_defenses.core.errors import UserError

from .toys import TOY, own_cache, write

__all__ = ["own_cache"]

USER = '''
    """My attack."""
    from dataclasses import dataclass
    import neighbour_of_mine

    print("hello from the file")

    @dataclass(frozen=True)
    class Mine:
        """Mine: a class of my own."""
        steps: int = neighbour_of_mine and 3

    def build(shape, classes):
        return (shape, classes)

    def prepare(): ...
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    write(tmp_path, "neighbour_of_mine.py", "VALUE = 3\n")
    return write(tmp_path, "mine.py", USER.replace("neighbour_of_mine and 3", "3"))


def test_a_dataclass_of_a_file(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = registry.find("attack", f"{mine}:Mine")
    assert (entry.kind, entry.summary) == ("attack", "Mine: a class of my own")
    made = entry.create(steps="7")
    assert made.steps == 7
    assert type(made) is entry.load()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "hello from the file\n"


def test_a_callable_of_a_file_is_a_model(mine: Path) -> None:
    entry = registry.find("model", f"{mine}:build")
    assert entry.create().build((1, 8, 8), 10) == ((1, 8, 8), 10)
    with pytest.raises(UserError, match="is not a dataclass defined in that file, as every attack"):
        registry.find("attack", f"{mine}:build")


def test_a_card_of_a_file_counts(tmp_path: Path) -> None:
    source = TOY.replace('raise RuntimeError("a listing must not run this file")', "")
    file = write(tmp_path, "toy_file.py", source)
    entry = registry.find("attack", f"{file}:Toy")
    assert entry.version == 2
    assert entry.create(steps="9").steps == 9
    with pytest.raises(UserError, match="steps=0 is below"):
        entry.create(steps="0")


def test_a_changed_file_is_loaded_again(mine: Path) -> None:
    reference = plugins.Reference(mine, "Mine")
    first = plugins.load_object(reference)
    assert plugins.load_object(reference) is first
    write(mine.parent, "mine.py", "class Mine:\n    steps: int = 4\n")
    assert plugins.load_object(reference) is not first


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        ("{folder}/main.py:Mine", "main.py: no such file", "'mine.py'"),
        ("{folder}/mine.py:Mime", "mine.py has no 'Mime'", "'Mine'"),
        ("{folder}/mine.py", "names a file, but nothing in it", "mine.py:Mine"),
        ("{folder}/weights.pt:Mine", "is not a .py file", "never run"),
        ("{folder}/nowhere/mine.py:Mine", "no such file", "there is no folder"),
    ],
)
def test_files_that_do_not_fit(mine: Path, text: str, sentence: str, hint: str) -> None:
    (mine.parent / "weights.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError) as caught:
        registry.find("model", text.format(folder=mine.parent))
    assert sentence in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n\nraise ValueError('no luck')\n", "bad.py, line 3: ValueError: no luck"),
        ("def f():\n    1 / 0\nf()\n", "bad.py, line 2: ZeroDivisionError: division by zero"),
        ("x = 1\nclass A\n", "bad.py, line 2: SyntaxError"),
        ("import no_such_thing_here\n", "bad.py, line 1: ModuleNotFoundError"),
        ("import sys\nsys.exit('enough')\n", "bad.py, line 2: SystemExit: enough"),
    ],
)
def test_a_file_that_raises(tmp_path: Path, source: str, message: str) -> None:
    file = write(tmp_path, "bad.py", source)
    before = set(sys.modules)
    with pytest.raises(UserError) as caught:
        registry.find("model", f"{file}:A")
    assert message in caught.value.message
    assert not {name for name in set(sys.modules) - before if name.startswith("rrd_file")}


# --- entry points of installed packages


def install(folder: Path, points: str, **files: str) -> None:
    """A package as pip leaves it: its files, and its dist-info."""
    for name, source in {"__init__": "raise RuntimeError('imported')", **files}.items():
        write(folder / "rrd_extra", f"{name}.py", source)
    info = folder / "rrd_extra-1.0.dist-info"
    write(info, "METADATA", "Metadata-Version: 2.1\nName: rrd-extra\nVersion: 1.0\n")
    write(info, "entry_points.txt", points)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_installed_package_adds_entries_unimported(site: Path) -> None:
    points = "[robustbench_defenses.attacks]\nfar_away = rrd_extra.thing:Toy\n"
    install(site, points, thing=TOY.replace("toy_l2", "far_l2"))
    found = {entry.name: entry for entry in registry.entries("attack")}
    assert found["far_away"].origin == "rrd-extra"
    assert found["far_l2"].family == "far_away"
    assert registry.find("attack", "far-l2").module == "rrd_extra.thing"
    assert "rrd_extra" not in sys.modules
    with pytest.raises(UserError, match="RuntimeError: imported"):
        found["far_away"].create()
    # The second time the answer comes from the cache.
    assert "far_away" in {entry.name for entry in registry.entries("attack")}


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        ("x = rrd_extra.nothing:Toy", "no such module"),
        ("x = rrd_nowhere.thing:Toy", "no such module"),
        ("x = rrd_extra.bare:Toy", "has no CARD"),
        ("x = rrd_extra.thing:Other", "is about Toy"),
    ],
)
def test_a_broken_entry_point_is_named(site: Path, point: str, sentence: str) -> None:
    install(site, f"[robustbench_defenses.attacks]\n{point}\n", thing=TOY, bare="class Toy: ...\n")
    found = registry.scan("attack")
    mine = [problem for problem in found.problems if problem.startswith("rrd-extra: entry point x")]
    assert len(mine) == 1
    assert sentence in mine[0]


def test_a_package_cannot_take_our_names(site: Path) -> None:
    ours = registry.scan("attack").entries[0].name
    install(site, f"[robustbench_defenses.attacks]\n{ours} = rrd_extra.thing:Toy\n", thing=TOY)
    with pytest.raises(UserError, match=f"'{ours}' is claimed twice"):
        registry.find("attack", ours)
