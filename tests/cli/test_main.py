"""The frame of the command line: commands from files, exit codes, errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from robustbench_defenses.cli import frame, main, options
from robustbench_defenses.core.errors import Interrupted, Notice, UserError
from robustbench_defenses.core.registry import ROOT

HELLO = '''
    """Say hello to someone.

      rrd hello-you Ann          says it
    """
    import signal
    import time
    from pathlib import Path
    from typing import Annotated

    import typer

    from ..core.errors import UserError
    from .console import err, out, print_json, progress
    from .options import BatchSize, Debug, Json, Seed, Set, Threads, names_of, parse_set, run_ids
    from .options import DEFAULT_RESULTS, Results, parse_batch_size


    def command(
        name: Annotated[str, typer.Argument(metavar="WHOM", autocompletion=run_ids())],
        others: Annotated[list[str] | None, typer.Argument(metavar="OTHER")] = None,
        times: Annotated[int, typer.Option("--times", min=1, rich_help_panel="Manner")] = 1,
        attack: Annotated[str | None, typer.Option(autocompletion=names_of("attack"))] = None,
        scale: float = 1.0,
        file: Path | None = None,
        seed: Seed = 0,
        threads: Threads = None,
        batch_size: BatchSize = "auto",
        settings: Set = None,
        results: Results = DEFAULT_RESULTS,
        json: Json = False,
        debug: Debug = False,
    ) -> int | None:
        if name == "error":
            raise UserError("nobody is there", hint="knock first")
        if name == "defect":
            raise RuntimeError("a hole")
        if name == "one":
            return 1
        if name == "wait":
            reporter = progress()
            reporter.start("waiting", 3)
            print("ready", flush=True)
            time.sleep(60)
        if name == "flood":
            for line in range(100_000):
                out.print(f"line {line}")
        print_json({
            "name": name, "others": others, "times": times, "attack": attack, "scale": scale,
            "file": file, "seed": seed, "threads": threads, "set": parse_set(settings),
            "batch": parse_batch_size(batch_size), "results": results,
        })
        return None
'''
GROUP = '''
    """Several things under one name."""
    from typing import Annotated

    import typer

    app = typer.Typer()


    @app.command()
    def first(count: Annotated[int, typer.Option(help="How many.")] = 2) -> None:
        """The first thing."""
        print("first", count)


    @app.command()
    def second() -> int:
        """The second thing."""
        return 1
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of core and cli in which two commands were added, one file each."""
    folder = tmp_path_factory.mktemp("copy")
    package = folder / ROOT.name
    for part in ("core", "cli"):
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    for kept in (package / "cli").glob("*.py"):
        if kept.stem in frame.heads() and kept.stem not in ("list", "info"):
            kept.unlink()
    (package / "__init__.py").write_text('__version__ = "7.8.9"\n')
    shutil.copy(ROOT / "__main__.py", package)
    (package / "cli" / "hello_you.py").write_text(dedent(HELLO).lstrip())
    (package / "cli" / "things.py").write_text(dedent(GROUP).lstrip())
    (package / "attacks").mkdir()
    toy = '"""Toy attack."""\nCARD = {"object": "Toy", "version": 1}\nclass Toy:\n    k: int = 1\n'
    (package / "attacks" / "toy.py").write_text(toy)
    return folder


Rrd = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def rrd(copy: Path, tmp_path: Path) -> Rrd:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", ROOT.name, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=clean_environment(copy, tmp_path) | environment,
            timeout=120,
        )

    return run


def clean_environment(folder: Path, cache: Path) -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("RRD_", "_RRD"))}
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        keep.pop(name, None)
    return keep | {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(cache / "cache")}


def test_a_command_is_one_file(rrd: Rrd) -> None:
    result = rrd("hello-you", "Ann", "--times", "2", "--set", "a-b=1", "--set", "c=d=e")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "name": "Ann", "others": None, "times": 2, "attack": None, "scale": 1.0, "file": None,
        "seed": 0, "threads": None, "set": {"a_b": "1", "c": "d=e"}, "batch": None,
        "results": "results",
    }  # fmt: skip
    more = ("--scale", "0.5", "--file", "x/y", "--threads", "2", "--batch-size", "64")
    result = rrd("hello-you", "Ann", "Bob", "Cid", *more, RRD_RESULTS="/there")
    document = json.loads(result.stdout)
    assert document["others"] == ["Bob", "Cid"]
    assert (document["scale"], document["file"], document["threads"]) == (0.5, "x/y", 2)
    assert (document["batch"], document["results"]) == (64, "/there")


def test_help_lists_the_files_in_order(rrd: Rrd) -> None:
    result = rrd("--help")
    assert (result.returncode, result.stderr) == (0, "")
    commands = result.stdout.split("Commands:")[1].split("Options:")[0].splitlines()
    assert [line.split()[0] for line in commands if line.startswith("  ") and line[2] != " "] == [
        "list",
        "info",
        "hello-you",
        "things",
    ]
    assert "Say hello to someone." in result.stdout
    assert rrd().stdout == result.stdout


def test_help_of_a_command(rrd: Rrd) -> None:
    text = rrd("hello-you", "-h").stdout
    assert text.startswith("Usage: rrd hello-you [OPTIONS] WHOM [OTHER]...\n")
    assert "\n  rrd hello-you Ann          says it\n" in text
    places = [text.index(part) for part in ("Arguments:", "Manner:", "Common options:", "--help")]
    assert places == sorted(places)
    assert "env var: RRD_RESULTS" in text


def test_groups(rrd: Rrd) -> None:
    assert rrd("things", "first", "--count", "3").stdout == "first 3\n"
    assert rrd("things", "second").returncode == 1
    assert "The first thing." in rrd("things", "--help").stdout
    missing, wrong = rrd("things"), rrd("things", "frist")
    assert missing.stderr == "error: rrd things needs a command\n  hint: one of first, second\n"
    assert wrong.stderr.startswith("error: unknown command 'frist'\n  hint: did you mean 'first'?")
    assert (missing.returncode, wrong.returncode) == (2, 2)


def test_version(rrd: Rrd) -> None:
    result = rrd("--version")
    assert (result.returncode, result.stdout) == (0, "rrd 7.8.9\n")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["helo-you"], "unknown command 'helo-you'", "did you mean 'hello-you'?"),
        (["--versoin"], "unknown option '--versoin' of rrd", "did you mean '--version'"),
        (
            ["hello-you", "A", "--tmes", "1"],
            "unknown option '--tmes' of rrd hello-you",
            "did you mean '--times'",
        ),
        (["hello-you", "A", "-x"], "unknown option '-x' of rrd hello-you", "all: rrd hello-you"),
        (["hello-you"], "rrd hello-you needs WHOM", "rrd hello-you --help"),
        (["hello-you", "A", "--times"], "option '--times' requires an argument", "rrd hello-you"),
        (["hello-you", "A", "--times", "x"], "--times: x is not a whole number", "rrd hello-you"),
        (["hello-you", "A", "--times", "0"], "--times: 0 is less than 1", "rrd hello-you"),
        (["hello-you", "A", "--seed", "-1"], "--seed: -1 is less than 0", "rrd hello-you"),
        (["hello-you", "A", "--scale", "x"], "--scale: x is not a number", "rrd hello-you"),
        (["hello-you", "A", "--set", "steps"], "--set 'steps' has no value", "KEY=VALUE"),
        (["hello-you", "A", "--set", "=3"], "--set '=3' has no key", "KEY=VALUE"),
        (["hello-you", "A", "--batch-size", "0"], "--batch-size 0 is neither auto nor", None),
        (["hello-you", "error"], "nobody is there", "knock first"),
        (["list", "attacks", "more"], "got unexpected extra argument(s) (more)", "rrd list"),
    ],
)
def test_bad_input_is_one_sentence(
    rrd: Rrd, arguments: list[str], error: str, hint: str | None
) -> None:
    result = rrd(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"error: {error}")
    assert len(lines) == (1 if hint is None else 2)
    if hint is not None:
        assert lines[1].startswith("  hint: ")
        assert hint in lines[1]


def test_debug_shows_where_an_error_came_from(rrd: Rrd) -> None:
    result = rrd("hello-you", "error", "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: nobody is there\n  hint: knock first\n")


def test_a_defect_is_exit_3_with_a_way_to_report_it(rrd: Rrd) -> None:
    result = rrd("hello-you", "defect", "--set", "a=b c")
    assert (result.returncode, result.stdout) == (3, "")
    assert "RuntimeError: a hole" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert "please report" in last
    assert "rrd hello-you defect --set 'a=b c'" in last


def test_a_returned_number_is_the_exit_code(rrd: Rrd) -> None:
    result = rrd("hello-you", "one")
    assert (result.returncode, result.stdout, result.stderr) == (1, "", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(copy: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", ROOT.name, "hello-you", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=clean_environment(copy, tmp_path),
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors


def test_a_reader_that_leaves_is_no_error(copy: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", ROOT.name, "hello-you", "flood"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=clean_environment(copy, tmp_path),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rrd ", ["list", "info", "hello-you", "things"]),
        ("rrd he", ["hello-you"]),
        ("rrd --ver", ["--version"]),
        ("rrd things f", ["first"]),
        ("rrd hello-you A --ti", ["--times"]),
        ("rrd hello-you A --attack t", ["toy"]),
        ("rrd hello-you A --attack toy,", ["toy,toy"]),
        ("rrd hello-you ", ["last", "run-1", "run-2"]),
        ("rrd hello-you --results there r", ["run-3"]),
        ("rrd list r", ["recipes", "runs", "results"]),
        ("rrd info t", ["toy"]),
    ],
)
def test_completion(rrd: Rrd, tmp_path: Path, words: str, expected: list[str]) -> None:
    for run in ("results/runs/run-1", "results/runs/run-2", "there/runs/run-3"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "run.json").write_text("{}")
    place = str(len(words.split(" ")) - 1)
    result = rrd(_RRD_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=place)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == expected


def test_completion_can_be_installed(rrd: Rrd, tmp_path: Path) -> None:
    shown = rrd("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_RRD_COMPLETE=complete_bash" in shown.stdout
    installed = rrd(
        "--install-completion",
        "bash",
        HOME=str(tmp_path),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )
    assert installed.returncode == 0
    assert (tmp_path / ".bash_completions" / "rrd.sh").is_file()


# --- endings, in this process


def ending(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_dispatch", fail)
    return main.main(["x"])


def test_interrupted_work_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(monkeypatch, Interrupted("epoch 3 of 7 is kept; the same command goes on")) == 130
    assert capsys.readouterr().err == "epoch 3 of 7 is kept; the same command goes on\n"


def test_a_notice_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def remark(arguments: list[str]) -> int:
        import warnings

        for _ in range(2):
            warnings.warn("old is now called new", Notice, stacklevel=1)
        return 0

    monkeypatch.setattr(main, "_dispatch", remark)
    assert main.main([]) == 0
    assert capsys.readouterr().err == "note: old is now called new\n" * 2


def test_system_exit_keeps_its_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ending(monkeypatch, SystemExit(4)) == 4
    assert ending(monkeypatch, SystemExit()) == 0
    assert ending(monkeypatch, SystemExit("no")) == 1
    assert capsys.readouterr().err == "no\n"


@pytest.mark.parametrize("name", list(frame.heads()))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    head = frame.heads()[name]
    assert head.summary
    assert main.main([name, "--help"]) == 0
    assert head.summary in capsys.readouterr().out


def test_a_setting_given_twice_is_refused() -> None:
    assert options.parse_set(None) == {}
    with pytest.raises(UserError, match="--set steps is given twice: '1' and '2'"):
        options.parse_set(["steps=1", "steps = 2"])
