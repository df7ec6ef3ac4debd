"""Running a plan: one job after the other in this process, or several in child processes.

Finished work lies in the store, so a plan that is interrupted anywhere goes on when it is run
again. A failed job is reported and stops only what needs it. Failures of the job itself (exit 2,
exit 3) are final; a child that was killed or lost is tried three times in all.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..core.errors import Interrupted, UserError
from ..core.files import write_text
from ..core.progress import Progress, Silent
from .jobs import Job, Place, run

TRIES = 3
LOOK = 1.0  # seconds between two looks at the children
Told = Callable[["Outcome", int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `made` as of `jobs.run`; `sentence` says why there is nothing."""

    job: Job
    state: Literal["done", "failed", "not_run"]
    made: Mapping[str, str] = field(default_factory=dict)
    sentence: str = ""
    log: Path | None = None
    seconds: float = 0.0


def execute(
    jobs: Sequence[Job],
    place: Place,
    workers: int = 1,
    progress: Progress | None = None,
    told: Told = lambda outcome, done, total: None,
) -> dict[str, Outcome]:
    """Run `jobs`, given in an order that respects their needs; returns outcomes by name.

    `told(outcome, done, total)` hears of every job that ends. Ctrl-C: `Interrupted`.
    """
    if workers < 1:
        raise UserError(f"--jobs {workers}: at least 1 is needed")
    if workers == 1:
        return _serial(jobs, place, progress or Silent(), told)
    return _local(jobs, place, workers, progress or Silent(), told)


def _not_run(job: Job, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """The outcome of a job that lost something it needs, None for one that can run."""
    for name in job.needs:
        if outcomes[name].state != "done":
            return Outcome(job, "not_run", sentence=f"not run because {name} did not finish")
    return None


def _serial(
    jobs: Sequence[Job], place: Place, progress: Progress, told: Told
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for job in jobs:
        outcome = _not_run(job, outcomes) or _here(job, place, progress)
        outcomes[job.name] = outcome
        told(outcome, len(outcomes), len(jobs))
    return outcomes


def _here(job: Job, place: Place, progress: Progress) -> Outcome:
    begun = time.perf_counter()
    try:
        made = run(job, place, progress)
    except UserError as error:
        hint = f" ({error.hint})" if error.hint else ""
        return Outcome(job, "failed", sentence=f"{error.message}{hint}")
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:
        log = _log(job, place)
        write_text(log, traceback.format_exc())
        return Outcome(job, "failed", sentence=f"{type(error).__name__}: {error}", log=log)
    return Outcome(job, "done", made, seconds=time.perf_counter() - begun)


def _log(job: Job, place: Place) -> Path:
    return place.results_dir / "items" / "logs" / f"{job.name.replace(' ', '-')}.log"


@dataclass
class _Children:
    """The child processes that are running, so that they can be stopped together."""

    running: set[subprocess.Popen[str]] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    @contextlib.contextmanager
    def one(self, child: subprocess.Popen[str]) -> Iterator[None]:
        with self.lock:
            self.running.add(child)
            if self.stopped:
                child.send_signal(signal.SIGINT)
        try:
            yield
        finally:
            with self.lock:
                self.running.discard(child)

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for child in self.running:
                child.send_signal(signal.SIGINT)


def _local(
    jobs: Sequence[Job], place: Place, workers: int, progress: Progress, told: Told
) -> dict[str, Outcome]:
    progress.start(f"{workers} jobs side by side", len(jobs))
    outcomes: dict[str, Outcome] = {}
    waiting = list(jobs)
    children = _Children()
    threads = place.threads or max(1, (os.cpu_count() or 1) // workers)
    with ThreadPoolExecutor(workers) as pool:
        running: dict[Future[Outcome], Job] = {}
        try:
            while waiting or running:
                for job in list(waiting):
                    if len(running) >= workers:
                        break
                    if any(name not in outcomes for name in job.needs):
                        continue
                    waiting.remove(job)
                    lost = _not_run(job, outcomes)
                    if lost is not None:
                        outcomes[job.name] = lost
                        told(lost, len(outcomes), len(jobs))
                    else:
                        running[pool.submit(_child, job, place, threads, children)] = job
                if not running:
                    continue
                progress.update(len(outcomes), ", ".join(job.name for job in running.values()))
                done, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    outcomes[job.name] = future.result()
                    told(outcomes[job.name], len(outcomes), len(jobs))
        except KeyboardInterrupt:
            children.stop()
            raise Interrupted(
                f"interrupted with {len(outcomes)} of {len(jobs)} jobs done; "
                "the same command goes on"
            ) from None
    progress.finish()
    return outcomes


def _child(job: Job, place: Place, threads: int, children: _Children) -> Outcome:
    """One job in a process of its own; lost processes are tried again."""
    begun = time.perf_counter()
    log = _log(job, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    where = {**asdict(place), "threads": threads}
    message = json.dumps({"job": job.record(), "place": where}, default=str)
    code, said = 0, ""
    for _ in range(TRIES):
        with open(log, "w", encoding="utf-8") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", __package__ + ".child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env=environment,
            )  # fmt: skip
            with children.one(child):
                said, _ = child.communicate(message)
        code = child.returncode
        if code == 0:
            made = json.loads(said)
            return Outcome(job, "done", made, seconds=time.perf_counter() - begun)
        if code > 0 or children.stopped:  # its own failure: the same again would end the same way
            break
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        sentence = f"the process was killed (signal {-code}) {TRIES} times"
    else:
        sentence = lines[-1] if lines else f"the process ended with exit code {code}"
    return Outcome(job, "failed", sentence=sentence, log=log)
