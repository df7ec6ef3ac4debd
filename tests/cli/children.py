"""Commands in child processes: killed at chosen moments, or all at once.

`python -m tests.cli.children kill RESULTS:MOMENT,... ... -- ARGUMENT...`: for each results folder
the command runs again and again. A process is killed by SIGKILL at the first moment, the next one
at the second, and so on; the last is left alone. Moments count events of a process: each question
to the network; each file of an evaluation just before and just after its rename. Prints one line of
JSON per process: its results folder, the signal that ended it, its exit code and, where it ended by
itself, its events.

`python -m tests.cli.children together -- ARGUMENT... -- ARGUMENT...` runs commands at once.

The children are forked from one process that has imported everything and computed nothing. With
`SNAPSHOTS=always` in the environment a running block is kept after every step.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import robustbench_defenses.evaluation.run
import robustbench_defenses.report.table  # noqa: F401
from robustbench_defenses.cli.main import main as rrd
from robustbench_defenses.engine.caller import Caller
from robustbench_defenses.evaluation import blocks

if os.environ.get("SNAPSHOTS") == "always":
    blocks.KEEP_EVERY, blocks.LARGEST_SHARE = 0.0, math.inf


def watched(arguments: list[str], moment: int) -> tuple[int, list[str]]:
    """Run a command; kill this process at the event `moment` (0: never)."""
    events: list[str] = []

    def event(name: str) -> None:
        events.append(name)
        if len(events) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    rename, answer = os.replace, Caller.answer

    def replace(source: str, target: Path) -> None:
        kept = "evals" in Path(target).parts  # not the caches of cards
        if kept:
            event(f"before {Path(target).name}")
        rename(source, target)
        if kept:
            event(f"after {Path(target).name}")

    def counted(self: Caller, *rest: object) -> object:
        event("question")
        return answer(self, *rest)  # type: ignore[arg-type]

    os.replace = replace  # type: ignore[assignment]
    Caller.answer = counted  # type: ignore[method-assign, assignment]
    return rrd(arguments), events


def alone(arguments: list[str]) -> tuple[int, list[str]]:
    """Run a command."""
    return rrd(arguments), []


def child(work: Callable[[], tuple[int, list[str]]]) -> tuple[int, int]:
    """Fork; returns the process and the end of a pipe on which its outcome will come."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        with open(writer, "w") as pipe:
            json.dump(work(), pipe)
        os._exit(0)
    os.close(writer)
    return process, reader


def ending(process: int, reader: int, results: str = "") -> str:
    with open(reader) as pipe:
        said = pipe.read()
    _, status = os.waitpid(process, 0)
    code, events = json.loads(said) if said else (None, None)
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return json.dumps({"results": results, "signal": number, "code": code, "events": events})


def main(mode: str, *rest: str) -> None:
    groups = [list(part) for dash, part in itertools.groupby(rest, "--".__eq__) if not dash]
    if mode == "kill":
        plans, arguments = groups
        for plan in plans:
            results, _, moments = plan.partition(":")
            for moment in [*map(int, filter(None, moments.split(","))), 0]:
                one = partial(watched, [*arguments, "--results", results], moment)
                print(ending(*child(one), results), flush=True)
    else:
        running = [child(partial(alone, one)) for one in groups]
        for one in running:
            print(ending(*one), flush=True)


def environment(**more: str) -> dict[str, str]:
    """For processes that run the code of this folder, on one thread."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


if __name__ == "__main__":
    main(*sys.argv[1:])
