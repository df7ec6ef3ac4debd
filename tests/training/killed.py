"""Small trainings in child processes that are killed by SIGKILL at chosen moments.

`python -m tests.training.killed DEFENSE RESULTS:MOMENT,... ...`: moments are counted in events
(each step; each file just before and just after its rename). For each results folder a process is
killed at the first moment; the next one goes on and is killed at the second, counted from its own
start; and so on; the last one is left alone. Prints per process its events (- when killed) and the
signal that ended it. The children are forked from one process that has imported everything and
read the images, but has not computed anything.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch._dynamo  # noqa: F401  (the first optimiser imports it: a second per child)

from robustbench_defenses.data.source import load
from robustbench_defenses.training import trainer
from robustbench_defenses.training.question import ask

from .conftest import SMALL, small


def child(results: str, defense: str, moment: int) -> int:
    events = 0

    def event() -> None:
        nonlocal events
        events += 1
        if events == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    rename, step = os.replace, trainer.step

    def replace(source: str, target: str) -> None:
        event()
        rename(source, target)
        event()

    def counted(*arguments: object) -> object:
        event()
        return step(*arguments)  # type: ignore[arg-type]

    os.replace = replace  # type: ignore[assignment]
    trainer.step = counted  # type: ignore[assignment]
    trainer.SAVE_SECONDS = 0.0  # save after every step
    small(Path(results), defense, settings={"projector_width": 16} if defense == "aicr" else {})
    return events


def main(defense: str, *plans: str) -> None:
    ask(defense, "digits", settings=SMALL)
    load("digits", "train")
    for plan in plans:
        results, _, moments = plan.rpartition(":")
        for moment in [*map(int, filter(None, moments.split(","))), 0]:
            print(*ending(results, defense, moment), flush=True)


def ending(results: str, defense: str, moment: int) -> tuple[str, int]:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        os.write(writer, str(child(results, defense, moment)).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(process, 0)
    said = os.read(reader, 100).decode()
    os.close(reader)
    return said or "-", os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
