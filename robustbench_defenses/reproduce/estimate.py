"""What a plan will cost: from runs and results that are there, and a few timed batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..core.device import Machine
from ..core.errors import UserError
from ..core.settings import plain
from ..data.source import describe, load
from ..evaluation.question import ask
from ..evaluation.schema import Result
from ..evaluation.store import evals, file_name
from ..evaluation.store import load as stored
from ..training.assemble import model_factory
from ..training.runs import Run, read_info, runs_folder
from .jobs import CLEAN, Evaluation, Job, Place, Training, full_name
from .levels import Level

TIMED_BATCH = 64
State = Literal["done", "to do", "unfinished"]


@dataclass(frozen=True)
class Standing:
    """How a job stands: `there` of `total` answers (1 for a training); `seconds` still to come, at
    most, None where nobody can say."""

    state: State
    there: int
    total: int
    seconds: float | None


@dataclass
class Estimator:
    """Estimates for the jobs of one plan, run as `place` says; what is timed once is remembered."""

    place: Place
    machine: Machine
    level: Level
    timed: bool = True
    _passes: dict[str, tuple[float, float]] = field(default_factory=dict)
    _steps: dict[str, float] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def standing(self, job: Job) -> Standing:
        """The standing of one job."""
        if job.training is not None:
            return self._training(job.training)
        known = [self._known(one) for one in job.evaluations]
        there = sum(known)
        todo = [one for one, is_known in zip(job.evaluations, known) if not is_known]
        seconds = [self._seconds(one) for one in todo] if self.timed else [None]
        return Standing(
            state="done" if not todo else "to do",
            there=there,
            total=len(known),
            seconds=_sum(seconds),
        )

    def _training(self, training: Training) -> Standing:
        folder = runs_folder(self.place.results_dir) / training.run_id
        state: State = "to do"
        done = 0.0
        if not self.place.fresh and (folder / "run.json").is_file():
            run = Run(folder, read_info(folder))
            if run.finished:
                return Standing("done", 1, 1, 0.0)
            state = "unfinished"
            total = sum(int(phase["epochs"]) for phase in run.info.phases) or 1
            done = min(1.0, run.info.epochs_done / total)
        if not self.timed:
            return Standing(state, 0, 1, None)
        key = training.run_id.replace(f"-s{training.seed}-", "-")
        if key not in self._steps:
            from ..training.timing import estimate

            self._steps[key] = estimate(training.question, self.machine, self.place.data_dir)
        return Standing(state, 0, 1, self._steps[key] * (1 - done))

    def _known(self, one: Evaluation) -> bool:
        """Whether an answer that the run would use lies in the store; the evaluation itself looks
        again."""
        if self.place.fresh:
            return False
        name = file_name(full_name(one.asked.attack))
        folder = evals(self.place.results_dir) / file_name(one.subject)
        files = sorted(folder.glob(f"{name}-*.json"))
        expected = self._expected(one) if files else {}
        for path in files:
            with contextlib.suppress(UserError):
                if _told(stored(path).result) == expected:
                    return True
        return False

    def _expected(self, one: Evaluation) -> dict[str, Any]:
        """What the stored answer that the run would use says of itself, as `_told`."""
        asked, place = one.asked, self.place
        dataset = one.training.dataset
        name = full_name(asked.attack)
        question = ask(
            name, describe(dataset, place.data_dir), settings=dict(asked.settings),
            eps=asked.budget, sweep=asked.sweep,
        )  # fmt: skip
        if asked.n < 0 and dataset not in self._sizes:
            self._sizes[dataset] = len(load(dataset, "test", place.data_dir).labels)
        return {
            "attack": name,
            "version": question.entry.version,
            "parameters": plain(question.parameters),
            "grid": list(question.grid),
            "sweep": question.sweep,
            "targeted": False,
            "backend": "native",
            "source": None if one.source is None else one.source.run_id,
            "subset": "first",
            "n": asked.n if asked.n >= 0 else self._sizes[dataset],
            "precision": place.precision,
            "seed": place.seed,
        }

    def _seconds(self, one: Evaluation) -> float | None:
        """Most seconds that an answer takes: its declared passes at the timed rate."""
        from ..core.registry import find

        question = one.training.question
        about = describe(question.dataset, self.place.data_dir)
        forward, backward = self._rates(one.training)
        n = one.asked.n if one.asked.n > 0 else 10_000
        if one.asked.attack == CLEAN:
            return n * forward
        attack = find("attack", full_name(one.asked.attack)).create(**dict(one.asked.settings))
        runs = 1
        if not hasattr(attack, "members"):
            per_class = getattr(attack, "runs", None)
            runs = per_class(about.classes) if per_class else attack.restarts
        passes = attack.passes(about.classes)
        each: float = passes[0] * forward + passes[1] * (backward - forward)
        return n * runs * each

    def _rates(self, training: Training) -> tuple[float, float]:
        """Seconds per image of a forward pass, and of one with the input's gradient."""
        question = training.question
        key = f"{question.dataset}|{question.model}|{sorted(question.model_settings.items())}"
        if key not in self._passes:
            about = describe(question.dataset, self.place.data_dir)
            build = model_factory(
                question.model, question.model_settings, about.shape, about.classes
            )
            self._passes[key] = _timed(build(), about.shape, self.machine)
        return self._passes[key]


def _timed(network: Any, shape: tuple[int, ...], machine: Machine) -> tuple[float, float]:
    from ..core.view import View
    from ..engine.twin import search_twin

    images = torch.rand(TIMED_BATCH, *shape, device=machine.device)
    network = network.to(machine.device).eval()
    twin = search_twin(View("timed", network), images, machine.precision)
    taken = [0.0, 0.0]
    for turn in range(3):  # the first warms up
        for place, wanted in enumerate((False, True)):
            begun = time.perf_counter()
            points = images.clone().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                total = twin(points).sum()
            if wanted:
                torch.autograd.grad(total, points)
            total.item()
            if turn:
                taken[place] += (time.perf_counter() - begun) / 2 / TIMED_BATCH
    return taken[0], taken[1]


def _told(found: Result) -> dict[str, Any]:
    """What decides the key of a stored result, all but weights, code, data and view: for these the
    subject would have to be loaded."""
    attack = found.attack
    return {
        "attack": attack.name,
        "version": attack.version,
        "parameters": attack.parameters,
        "grid": [point.eps for point in found.curve],
        "sweep": found.sweep,
        "targeted": attack.targeted,
        "backend": attack.backend,
        "source": attack.source,
        "subset": found.dataset.subset,
        "n": found.n,
        "precision": found.precision,
        "seed": found.seed,
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def machine_of(device: str, threads: int | None, precision: str = "auto") -> Machine:
    """The machine that the plan will run on; `UserError` as of `core.device.machine`."""
    from ..core.device import machine

    try:
        return machine(device, precision, threads)
    except RuntimeError as error:  # a driver that is there and does not work
        raise UserError(f"device {device} cannot be used: {error}") from error
