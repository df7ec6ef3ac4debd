"""`rrd list` and `rrd info`: every kind, for people and for programs, without heavy imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_defenses.cli import stored
from robustbench_defenses.cli.list import LISTED
from robustbench_defenses.cli.main import main
from robustbench_defenses.core import registry

HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "scipy",
    "sklearn",
    "matplotlib",
    "pydantic",
    "foolbox",
    "jinja2",
)
RESULT = {
    "schema": "rrd.result/1",
    "key": "77ab01c2",
    "subject": {"id": "digits-lenet-nt-smoke-s0-1f3c9a72", "name": "nt"},
    "dataset": {"name": "digits", "n": 360},
    "attack": {"name": "pgd_linf", "norm": "linf"},
    "n": 360,
    "clean_accuracy": 0.978,
    "curve": [{"eps": 0.0, "robust_accuracy": 0.978}, {"eps": 0.2, "robust_accuracy": 0.003}],
    "auc": 0.33,
    "environment": {"date": "2026-01-02T03:04:05"},
}
DATASET = '''"""Toy images: two stripes."""
CARD = {
    "object": "Toy",
    "version": 1,
    "source": "nobody",
    "shape": [1, 8, 8],
    "classes": 10,
    "train": 1437,
    "test": 360,
    "grids": {"linf": [0, 0.1, 8 / 255], "l2": [0, 1]},
    "licence": "none",
    "files": {"a.gz": {"md5": "0123456789abcdef0123456789abcdef", "unzipped": {"bytes": 3}}},
}
class Toy:
    """Toy."""
'''
DEFENSE = '''"""Toy defense: does nothing.

Train as usual:

    LOSS = CE                                                               (1)
"""
CARD = {
    "object": "Toy",
    "version": 3,
    "source": "Nobody 2020",
    "aliases": ["idle"],
    "params": {"rate": {"unit": "per step", "help": "how fast", "papers": {"nobody": 0.5}}},
    "presets": {"smoke": {"epochs": 3}, "quick": {"epochs": 7, "rate": 0.1}},
}
class Toy:
    rate: float = 0.25
    rule: str | None = None
'''
RECIPE = """id: afd/table1
kind: table
title: "Accuracy: four defenses"
metric: accuracy
layout: {rows: [defense], columns: [attack]}
notes:
  - "a note"
cells:
  - {value: 1.0, this is not: [YAML
"""


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RRD_RESULTS", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of toys in the place of ours."""
    folder = tmp_path / "package"
    files = {"data/stripes.py": DATASET, "defenses/idler.py": DEFENSE}
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    monkeypatch.setattr(registry, "ROOT", folder)
    for function in (registry.scan, registry.find, registry.find_any, registry.entries):
        monkeypatch.setattr(function, "__defaults__", (folder,))
    monkeypatch.setattr(registry.plugins, "installed", lambda plural: [])
    return folder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with two runs and one result."""
    folder = tmp_path / "results"
    for name, status in (("digits-lenet-nt-smoke-s0-1f3c9a72", "done"), ("other", "running")):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        content = {"id": name, "status": status, "defense": "nt", "best": {"accuracy": 0.971}}
        (run / "run.json").write_text(json.dumps(content | {"finished": "2026-01-02T03:04:05"}))
    place = folder / "evals" / "digits-lenet-nt-smoke-s0-1f3c9a72"
    place.mkdir(parents=True)
    (place / "pgd_linf-77ab01c2.json").write_text(json.dumps(RESULT))
    return folder


def rrd(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("kind", LISTED)
def test_every_kind_can_be_listed(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    code, text, _ = rrd(capsys, "list", kind)
    assert code == 0
    assert max([len(line) for line in text.splitlines()], default=0) <= 100
    code, text, _ = rrd(capsys, "list", kind, "--json")
    assert code == 0
    documents = json.loads(text)
    if kind.removesuffix("s") in registry.KINDS:
        names = [entry.name for entry in registry.entries(kind.removesuffix("s"))]
        assert [document["name"] for document in documents] == names


def test_list_of_data_sets(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = rrd(capsys, "list", "datasets")
    assert (code, errors) == (0, "")
    assert text.splitlines() == [
        " name     images  classes  train  test  summary",
        " stripes  1x8x8        10  1,437   360  Toy images: two stripes",
    ]


def test_a_kind_may_be_written_in_many_ways(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {rrd(capsys, "list", kind)[1] for kind in ("defenses", "defense", "Defenses")}
    assert len(texts) == 1
    code, _, errors = rrd(capsys, "list", "defences")
    assert code == 2
    assert errors.startswith("error: there is no kind 'defences' to list\n  hint: did you mean")


def test_a_broken_file_is_named_beside_the_rest(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "data" / "bad.py").write_text("CARD = {\n")
    code, text, errors = rrd(capsys, "list", "datasets")
    assert code == 2
    assert "stripes" in text
    assert "bad.py is not a readable dataset: line 1" in errors
    code, text, _ = rrd(capsys, "list", "datasets", "--json")
    assert code == 2
    assert [document["name"] for document in json.loads(text)] == ["stripes"]


@pytest.mark.parametrize(
    ("kind", "hint"), [("runs", "no runs in results/runs"), ("results", "no results in results")]
)
def test_missing_folders_are_an_empty_listing(
    capsys: pytest.CaptureFixture[str], kind: str, hint: str
) -> None:
    code, text, errors = rrd(capsys, "list", kind)
    assert (code, text) == (0, "")
    assert errors.startswith(hint)
    assert len(errors.splitlines()) == 1
    assert rrd(capsys, "list", kind, "--json")[1] == "[]\n"
    assert rrd(capsys, "list", kind, "--quiet") == (0, "", "")


def test_runs_and_results(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = rrd(capsys, "list", "runs")
    assert (code, errors) == (0, "")
    assert sorted(text.splitlines()[1:]) == [
        " digits-lenet-nt-smoke-s0-1f3c9a72  done     97.1 %  2026-01-02 03:04",
        " other                              running  97.1 %  2026-01-02 03:04",
    ]
    documents = json.loads(rrd(capsys, "list", "runs", "--json")[1])
    assert {document["id"]: document["status"] for document in documents} == {
        "digits-lenet-nt-smoke-s0-1f3c9a72": "done",
        "other": "running",
    }
    code, text, errors = rrd(capsys, "list", "results", "--results", str(results))
    assert (code, errors) == (0, "")
    cells = text.splitlines()[1].split()
    assert cells[:3] == ["digits-lenet-nt-smoke-s0-1f3c9a72", "pgd_linf", "360"]
    assert cells[3:8] == ["97.8", "0.3", "@", "0.2", "0.330"]


def test_damaged_files_do_not_hide_the_others(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "runs" / "other" / "run.json").write_text('{"id": ')
    (results / "evals" / "x.json").write_text("[]")
    code, text, errors = rrd(capsys, "list", "runs")
    assert code == 0
    assert len(text.splitlines()) == 2
    assert errors.startswith("warning: ")
    assert "other/run.json is not valid JSON" in errors
    code, text, errors = rrd(capsys, "list", "results")
    assert len(text.splitlines()) == 2
    assert "x.json holds no JSON object" in errors


def test_only_the_head_of_a_recipe_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    (folder / "afd").mkdir(parents=True)
    (folder / "afd" / "table1.yaml").write_text(RECIPE.replace("\n", "\r\n"))
    (folder / "afd" / "table2.yaml").write_text("title: [open\n")
    listing = stored.recipes(folder)
    assert listing.rows == [["afd/table1", "Accuracy: four defenses"]]
    assert listing.documents[0]["metric"] == "accuracy"
    assert listing.documents[0]["id"] == "afd/table1"
    assert len(listing.problems) == 1
    assert "table2.yaml: malformed YAML" in listing.problems[0]


def test_info_of_a_defense(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = rrd(capsys, "info", "IDLE")
    assert (code, errors) == (0, "")
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[:2] == ["idler   defense", "Toy defense: does nothing."]
    assert (
        "    LOSS = CE                                                               (1)" in lines
    )
    squeezed = [" ".join(line.split()) for line in lines]
    for line in (
        "source Nobody 2020",
        "aliases idle",
        "version 3 · rrd · package/defenses/idler.py",
        "presets",
        "smoke epochs=3",
        "quick epochs=7, rate=0.1",
        "rate 0.25 float how fast [per step] · nobody 0.5",
        "rule none str | none",
    ):
        assert line in squeezed


def test_info_of_a_data_set(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = rrd(capsys, "info", "stripes")
    assert code == 0
    squeezed = [" ".join(line.split()) for line in text.splitlines()]
    for line in ("shape 1,8,8", "classes 10", "grids", "l2 0, 1", "licence none"):
        assert line.replace("1,8,8", "1, 8, 8") in squeezed
    assert "a.gz md5=01234567…, unzipped (bytes=3)" in squeezed
    document = json.loads(rrd(capsys, "info", "stripes", "--json")[1])
    assert document["kind"] == "dataset"
    assert document["grids"] == {"linf": [0, 0.1, 8 / 255], "l2": [0, 1]}


def test_info_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Mine:\n"
        '    """My own."""\n    steps: int = 3\n'
    )
    code, text, _ = rrd(capsys, "info", "mine.py:Mine")
    assert code == 0
    assert text.splitlines()[1] == "My own."
    code, _, errors = rrd(capsys, "info", "mine.py:Yours")
    assert code == 2
    assert errors.startswith("error: mine.py has no 'Yours'")


def test_info_of_runs_and_results(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(rrd(capsys, "info", "oth", "--json")[1])
    assert (document["kind"], document["id"]) == ("run", "other")
    code, text, _ = rrd(capsys, "info", "digits-lenet-nt-smoke-s0-1f3c9a72/pgd")
    assert code == 0
    assert "robust accuracy  0.003" in text
    assert rrd(capsys, "info", "last")[0] == 0
    (results / "runs" / "otter").mkdir()
    (results / "runs" / "otter" / "run.json").write_text("{}")
    code, _, errors = rrd(capsys, "info", "ot")
    assert code == 2
    assert errors.startswith("error: 'ot' begins 2 names of runs")


def test_info_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = rrd(capsys, "info", "no_such_thing_at_all")
    assert (code, text) == (2, "")
    assert errors.startswith("error: nothing is called 'no_such_thing_at_all'\n  hint: ")


@pytest.mark.parametrize("columns", ["40", "100"])
def test_info_of_everything_fits_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for kind in registry.KINDS:
        for entry in registry.entries(kind):
            code, text, _ = rrd(capsys, "info", f"{kind}:{entry.name}")
            assert code == 0
            shown = [line for line in text.splitlines() if line not in entry.doc]
            assert max(len(line.rstrip()) for line in shown) <= int(columns)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list", "--help"], *(["list", kind] for kind in LISTED), ["info", "ANY"]],
    ids=" ".join,
)
def test_listings_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    if "ANY" in arguments:
        names = [e.name for kind in registry.KINDS for e in registry.entries(kind)]
        arguments = ["info", names[-1]]
    script = (
        "import sys\n"
        "from robustbench_defenses.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"print(code, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": str(registry.ROOT.parent),
            "XDG_CACHE_HOME": str(tmp_path),
            "PATH": "",
            "HOME": str(tmp_path),
        },
        timeout=120,
    )
    assert done.stderr.splitlines()[-1] == "0"
