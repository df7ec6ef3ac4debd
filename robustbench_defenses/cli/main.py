"""The console script: runs one command and turns every ending into an exit code.

0 done; 1 done, and what was asked to hold does not; 2 bad input; 3 a defect of ours;
130 interrupted (143 by SIGTERM); 141 the reader of a pipe has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import typer

from .. import __version__
from ..core.allocator import keep_freed_memory
from ..core.errors import Interrupted, Notice, UserError, did_you_mean
from ..core.threads import yield_on_a_busy_machine
from .frame import CONTEXT, RootGroup, heads, option_names

HELP = """Train adversarial defenses, attack them, and see what is left.

  rrd quickstart                                        offline, under two minutes
  rrd train aicr --dataset mnist                        train a defense
  rrd eval last --attack pgd --eps-sweep                attack it
  rrd eval net.py:build --dataset mnist --attack pgd    attack a network of your own
"""
COMPLETION = "_RRD_COMPLETE"


def run() -> NoReturn:
    """The process `rrd`."""
    yield_on_a_busy_machine()
    keep_freed_memory()
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of this process) and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _tolerate_encodings()
    stop = _Stop()
    with warnings.catch_warnings(), stop.on_sigterm():
        warnings.simplefilter("always", Notice)
        warnings.showwarning = _shown_by(warnings.showwarning)
        try:
            code = _dispatch(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # Nobody reads: what is still in the buffer must not raise again at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except UserError as error:
            return _bad_input(error, arguments)
        except typer.Exit as exit_:
            return int(exit_.exit_code)
        except SystemExit as exit_:
            return _exit_code(exit_)
        except (KeyboardInterrupt, Interrupted, typer.Abort) as error:
            message = error.message if isinstance(error, Interrupted) else "interrupted"
            _say(message)
            return stop.code
        except Exception as error:
            if isinstance(error, typer.TyperException):
                return _bad_input(_usage_error(error, arguments), arguments)
            return _defect(arguments)


def _dispatch(arguments: list[str]) -> int:
    group = root()
    if os.environ.get(COMPLETION):
        group.main(arguments, prog_name="rrd", complete_var=COMPLETION)
    with group.make_context("rrd", arguments) as context:
        result = group.invoke(context)
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def root() -> Any:
    """The command `rrd` with all its commands."""
    app = typer.Typer(cls=RootGroup, rich_markup_mode=None, context_settings=dict(CONTEXT))
    app.callback(invoke_without_command=True, help=HELP)(_root)
    return typer.main.get_command(app)


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"rrd {__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class _Stop:
    """Which signal ended the work: SIGTERM is treated like Ctrl-C, with an exit code of its own."""

    code = 130

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Inside, SIGTERM raises `KeyboardInterrupt`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._stopped)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _stopped(self, number: int, frame: object) -> None:
        self.code = 128 + number
        raise KeyboardInterrupt


def _exit_code(error: SystemExit) -> int:
    if isinstance(error.code, str):
        _say(error.code)
        return 1
    return error.code or 0


def _bad_input(error: UserError, arguments: list[str]) -> int:
    if "--debug" in arguments:
        import traceback

        traceback.print_exception(error)
    _say(f"error: {error.message}", *([f"  hint: {error.hint}"] if error.hint else []))
    return 2


def _defect(arguments: list[str]) -> int:
    import platform
    import shlex
    import traceback

    _say(traceback.format_exc().rstrip())
    _say(
        "this is a defect of rrd, not of your input; please report the traceback above with: "
        f"rrd {__version__}, python {platform.python_version()}, {platform.system()}, "
        f"command: {shlex.join(['rrd', *arguments])}"
    )
    return 3


def _usage_error(error: Any, arguments: list[str]) -> UserError:
    """A complaint of the argument parser as one sentence with a hint."""
    context = getattr(error, "ctx", None)
    named = [argument for argument in arguments[:1] if argument in heads()]
    path = context.command_path if context is not None else " ".join(["rrd", *named])
    listing = f"{path} --help"
    kind = type(error).__name__
    if kind == "NoSuchOption":
        names = option_names(context.command, context) if context is not None else []
        hint = did_you_mean(error.option_name, names, listing)
        return UserError(f"unknown option {error.option_name!r} of {path}", hint=hint)
    param = getattr(error, "param", None)
    if kind == "MissingParameter" and param is not None:
        name = param.opts[0] if param.param_type_name == "option" else _metavar(param)
        return UserError(f"{path} needs {name}", hint=listing)
    if kind == "BadParameter" and param is not None:
        name = max(param.opts, key=len) if param.param_type_name == "option" else _metavar(param)
        return UserError(f"{name}: {_sentence(error.message)}", hint=listing)
    return UserError(_sentence(error.format_message()), hint=listing)


def _metavar(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _say(*lines: str) -> None:
    """Lines on stderr, after any progress bar is off the screen."""
    console = sys.modules.get(f"{__package__}.console")
    if console is not None:
        console.err.release()
    with contextlib.suppress(OSError):
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def _shown_by(other: Any) -> Any:
    """`warnings.showwarning` that prints a `Notice` as one line and leaves the rest to `other`."""

    def show(message: Any, category: Any, *rest: Any, **named: Any) -> None:
        if issubclass(category, Notice):
            _say(f"note: {message}")
        else:
            other(message, category, *rest, **named)

    return show


def _tolerate_encodings() -> None:
    """A terminal that cannot show a character gets a `?`, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
