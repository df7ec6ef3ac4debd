"""What is documented is true: commands parse and run, excerpts and tables are those of the code.

Every `rrd` command of README, CONTRIBUTING and docs is parsed exactly as printed. Then each page is
told from top to bottom in an empty folder: its Python files are written, its Python code is run,
its commands run in order, with these economies only:

- `rrd train` gets the preset `smoke`, one epoch and 300 images (what is printed may take minutes);
- `rrd eval` and `rrd attack` get `-n 40`;
- `mnist` becomes `digits`; where RRD_DATA has the real files, pages that speak of mnist are told a
  second time with them;
- `rrd data fetch` is parsed only: it needs the network (tests/data and tests/cli hold it against a
  local server).

`rrd quickstart` and everything else runs as printed. Commands of the workshop (pip, git, pytest,
ruff, ...) are what `.ci/run` runs.
"""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

from robustbench_defenses.cli.main import HELP, main, root
from robustbench_defenses.core import registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data.source import load
from robustbench_defenses.report import reference

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
WORKSHOP = {"pip", "git", "cd", "pytest", "ruff", "mypy", "pre-commit", ".ci/run"}
_BLOCK = re.compile(
    r"(?:<!-- from: (?P<source>\S+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """One fenced block; `source`: the file of the package that it is an excerpt of."""

    language: str
    text: str
    source: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m["language"], m["text"], m["source"]) for m in _BLOCK.finditer(text)]


def lines(block: Block) -> Iterator[list[str]]:
    """The simple commands of a shell block, as words, without comments."""
    for line in block.text.splitlines():
        words: list[str] = []
        for word in shlex.split(line, comments=True):
            if word == "&&":
                yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words


def commands(page: Path) -> list[list[str]]:
    shell = [block for block in blocks(page) if block.language == "bash"]
    return [words for block in shell for words in lines(block)]


def parse(arguments: list[str]) -> None:
    """Parse a command line as the process would, without running it."""
    command, name, parent = root(), "rrd", None
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    while True:
        context = command.make_context(name, list(arguments), parent=parent)
        if not hasattr(command, "list_commands"):
            return
        rest = [*context._protected_args, *context.args]
        name, command, arguments = command.resolve_command(context, rest)
        parent = context


def cheaply(arguments: list[str], dataset: str) -> list[str]:
    """The command with the economies above."""
    command, rest = arguments[0], list(arguments[1:])
    if command in ("train", "eval", "attack"):
        rest = [dataset if word == "mnist" else word for word in rest]
    if command == "train":
        if "--preset" in rest:
            at = rest.index("--preset")
            del rest[at : at + 2]
        rest += ["--preset", "smoke", "--epochs", "1", "--limit-train", "300"]
    if command in ("eval", "attack"):
        if "-n" in rest:
            at = rest.index("-n")
            del rest[at : at + 2]
        rest += ["-n", "40"]
    return [command, *rest]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one small run, for pages that begin with `last`."""
    folder = tmp_path_factory.mktemp("docs") / "results"
    words = ["train", "nt", "--dataset", "digits", "--results", str(folder), "--quiet"]
    assert main(cheaply(words, "digits")) == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RRD_RESULTS", raising=False)
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    for name in ("plain", "noisy"):  # files of a page, not what another test imported
        monkeypatch.delitem(sys.modules, name, raising=False)
    return place


def speaks_of_mnist(page: Path) -> bool:
    return any("mnist" in words for words in commands(page))


def have_mnist() -> bool:
    try:
        load("mnist", "test")
    except UserError:
        return False
    return True


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def rrd_commands() -> list[tuple[str, str]]:
    """(page, command) of every documented `rrd` command, those of the help texts too."""
    found = [
        (name_of(page), shlex.join(words))
        for page in PAGES
        for words in commands(page)
        if words[0] == "rrd"
    ]
    files = sorted((registry.ROOT / "cli").glob("*.py"))
    helps = {f"cli/{path.name}": ast.get_docstring(ast.parse(path.read_bytes())) for path in files}
    helps["rrd --help"] = HELP
    for name, text in helps.items():
        for line in (text or "").splitlines():
            shown = re.match(r" *(rrd [a-z].*?)(  +.*)?$", line)
            if shown:
                found.append((name, shown[1]))
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("page", "command"), rrd_commands())
def test_every_command_parses_as_printed(page: str, command: str) -> None:
    parse(shlex.split(command)[1:])


@pytest.mark.parametrize("wrong", ["eval --atack pgd", "evaluate last", "train", "data fech"])
def test_a_wrong_command_does_not_parse(wrong: str) -> None:
    with pytest.raises(Exception, match=r"(?i)atack|evaluate|missing|defense|fech"):
        parse(shlex.split(wrong))


@pytest.mark.parametrize(("page", "command"), rrd_commands())
def test_every_name_is_registered(page: str, command: str) -> None:
    """Attacks, defenses and data sets that commands name exist."""
    words = shlex.split(command)
    if words[1] == "train":
        registry.find("defense", words[2])
    for option, kind in (("--attack", "attack"), ("--dataset", "dataset"), ("--model", "model")):
        for at, word in enumerate(words):
            if word == option:
                for name in words[at + 1].split(","):
                    if ".py:" not in name and (kind, name) != ("attack", "all"):
                        registry.find(kind, name)


def told(page: Path) -> list[object]:
    """A page once with digits; where it speaks of mnist, once more with the real files."""
    marks = [pytest.mark.slow]
    params: list[object] = [pytest.param(page, "digits", id=name_of(page), marks=marks)]
    if speaks_of_mnist(page):
        params.append(pytest.param(page, "mnist", id=f"{name_of(page)} with mnist", marks=marks))
    return params


STORIES = [page for page in PAGES if any(block.language != "text" for block in blocks(page))]


@pytest.mark.parametrize(("page", "dataset"), [one for page in STORIES for one in told(page)])
def test_every_page_runs(
    page: Path,
    dataset: str,
    folder: Path,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if dataset == "mnist" and not have_mnist():
        pytest.skip("RRD_DATA has no MNIST")
    shutil.copytree(trained, folder / "results")
    if page == README:
        write_weights(folder / "my_model.pt")
    for block in blocks(page):
        if block.source is not None:
            continue  # an excerpt, see below
        if block.language == "python":
            run_python(block.text, folder)
        elif block.language == "bash":
            for words in lines(block):
                run_command(words, dataset, capsys)


def run_python(text: str, folder: Path) -> None:
    """Write a block that names its file, run any other."""
    named = _FILE.match(text)
    if named:
        (folder / named[1]).write_text(text)
    else:
        exec(compile(text, "documentation", "exec"), {"__name__": "documentation"})


def run_command(words: list[str], dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    if words[0] in WORKSHOP or words[:3] == ["rrd", "data", "fetch"]:
        return
    if words[1:] == ["quickstart"] and dataset != "digits":
        return  # the first telling has had it
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
        return
    assert words[0] == "rrd", f"nothing runs {shlex.join(words)}"
    target = None
    if ">" in words:
        words, target = words[: words.index(">")], Path(words[-1])
    capsys.readouterr()
    code = main(cheaply(words[1:], dataset))
    printed = capsys.readouterr()
    # A diagnosis may find something: that is an answer too.
    assert code in ((0, 1) if "--diagnose" in words else (0,)), f"{words}\n{printed.err}"
    assert printed.out.strip()
    if target is not None:
        target.write_text(printed.out)


def write_weights(path: Path) -> None:
    """Weights for the network that README shows, as a user would bring them."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    torch.save(network.state_dict(), path)


def test_the_two_set_up_commands() -> None:
    printed = README.read_text(encoding="utf-8").splitlines()
    assert "pip install -c constraints.txt . && rrd quickstart" in printed
    assert "pip install -c constraints.txt '.[test]' && pytest -n auto" in printed


def test_ci_runs_the_test_command_as_printed() -> None:
    """The line of .ci/run that reads README finds exactly the printed command."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    reader = next(line for line in script.splitlines() if line.startswith("tests=$("))
    found = subprocess.run(
        ["bash", "-c", f'{reader}; printf %s "$tests"'], cwd=ROOT, capture_output=True, text=True
    )
    assert found.stdout == "pip install -c constraints.txt '.[test]' && pytest -n auto"
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    for tool in ("ruff check .", "ruff format --check .", "mypy"):
        assert f'"{tool}"' in script


def excerpts() -> list[tuple[str, str]]:
    return [
        (block.source, chunk)
        for page in PAGES
        for block in blocks(page)
        if block.source is not None
        for chunk in block.text.split("...\n")
    ]


@pytest.mark.parametrize(("source", "chunk"), excerpts())
def test_excerpts_stand_in_the_files_they_are_from(source: str, chunk: str) -> None:
    assert chunk.strip()
    assert chunk in (ROOT / source).read_text(encoding="utf-8")


def test_contributing_shows_one_file_of_each_kind() -> None:
    folders = {Path(source).parent.name for source, _ in excerpts()}
    assert folders == {"attacks", "battery", "defenses", "data", "models"}


def test_generated_parts_are_fresh() -> None:
    """`python -m robustbench_defenses.report.reference docs README.md` changes nothing."""
    assert sorted(map(str, reference.stale([DOCS, README]))) == []


def families() -> list[tuple[str, str]]:
    return [
        (kind, entry.name)
        for kind in reference.PAGES
        for entry in registry.entries(kind)
        if entry.name == entry.family and entry.origin == "rrd"
    ]


@pytest.mark.parametrize(("kind", "name"), families())
def test_every_page_has_the_fixed_headings(kind: str, name: str) -> None:
    page = DOCS / reference.PAGES[kind] / f"{name}.md"
    text = page.read_text(encoding="utf-8")
    assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == reference.HEADINGS[kind]
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert section.strip()
    assert f"<!-- generated: parameters {kind}:{name} -->" in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        assert place.exists(), f"{target} of {name_of(page)}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {head.lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", sorted((ROOT / "results").rglob("*.html")), ids=name_of)
def test_committed_pages_link_to_what_is_here(page: Path) -> None:
    """Of the folder that they were made in only a part is committed."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r'\shref="([^"#:]+)"', text):
        assert (page.parent / unquote(target)).exists(), f"{target} of {name_of(page)}"


def test_readme_shows_stored_results() -> None:
    """Its table is generated (so fresh, see above), from results that lie where it says."""
    page = README.read_text(encoding="utf-8")
    block = page.partition("<!-- results:begin -->\n")[2].partition("<!-- results:end -->")[0]
    (source,) = re.findall(r"<!-- generated: results (\S+) \w+ -->", block)
    assert f"]({source})" in block


def test_what_readme_calls_missing_is_missing() -> None:
    line = next(
        line for line in README.read_text(encoding="utf-8").splitlines() if "Not here yet" in line
    )
    names = re.findall(r"`(\w+)`", line)
    assert names
    for name in names:
        with pytest.raises(UserError):
            registry.find_any(name)


def test_constraints_pin_every_requirement() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {plain(re.fullmatch(r"([\w.-]+)==[\w.!+]+", pin)[1]) for pin in pins}  # type: ignore[index]
    assert len(pinned) == len(pins)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["dev"]]:
        assert plain(re.match(r"[\w.-]+", requirement)[0]) in pinned  # type: ignore[index]


def plain(name: str) -> str:
    """A package's name in the normal form of the index."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_package_data_is_there() -> None:
    """What the wheel ships besides code exists in the sources."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    for shipped in build["build"]["targets"]["wheel"]["force-include"]:
        assert any((ROOT / shipped).iterdir())


@pytest.mark.slow
def test_the_shipped_checkpoints_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`rrd check` from an empty folder asks what is shipped; the folder stays empty."""
    code = main(["check"])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    for defense in ("nt", "pgd_at", "aicr"):
        assert f"-{defense}-" in printed.out
    assert list(folder.iterdir()) == []
