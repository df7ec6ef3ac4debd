"""`evaluate`: what `rrd eval` and the Python API call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..core.device import machine
from ..core.errors import OutOfTime, UserError
from ..core.progress import Progress, Silent
from . import budgets, limit, store
from . import evaluate as answering
from . import question as asking
from .chosen import examples_of, threads_kept
from .evaluate import Answer, Settings
from .examples import Examples
from .libraries import knows
from .limit import TimeLimit
from .overall import Overall
from .record import Record
from .subject import Subject, resolve


@dataclass(frozen=True)
class Asked:
    """One question and the examples it is about."""

    question: asking.AttackQuestion
    examples: Examples

    @property
    def passes(self) -> tuple[int, int]:
        """The most forward and backward passes that it may take."""
        info = self.examples.info
        return budgets.declared(self.question, len(self.examples), info.classes)


@dataclass(frozen=True)
class Evaluation:
    """Questions about one subject, checked and not yet asked: iterating asks them in order."""

    subject: Subject
    asked: list[Asked]
    how: Settings

    def open(self) -> list[Asked]:
        """Those that have no stored answer yet."""
        return [one for one in self.asked if self._stored(one) is None]

    def __iter__(self) -> Iterator[Answer]:
        left: list[limit.Unfinished] = []
        overall = self.how.progress if isinstance(self.how.progress, Overall) else None
        for one in self.asked:
            if overall is not None:
                overall.enter(sum(one.passes))
            with threads_kept(self.how.machine.threads):
                answer = self._answer(one)
            if answer is None:
                left.append(
                    answering.unfinished(self.subject, one.examples, one.question, self.how)
                )
            else:
                yield answer
        if left:
            assert self.how.limit is not None
            said = limit.sentence(self.how.limit.minutes, left, self.how.fresh)
            raise OutOfTime(said, left)

    def _answer(self, one: Asked) -> Answer | None:
        """The answer; None where the time limit cuts it."""
        if self.how.limit is not None and self.how.limit.over:
            return self._stored(one)
        one_step = _one_step(self.subject, one, self.how)
        try:
            return answering.answer(self.subject, one.examples, one.question, self.how, one_step)
        except OutOfTime:
            return None

    def _stored(self, one: Asked) -> Answer | None:
        return answering.stored_answer(self.subject, one.examples, one.question, self.how)


def evaluate(
    subject: str | nn.Module,
    attacks: Sequence[str] = ("pgd",),
    *,
    dataset: str | None = None,
    eps: Sequence[float] | float | None = None,
    norm: str | None = None,
    n: int | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    sweep: str = "envelope",
    targeted: bool = False,
    backend: str = "native",
    view: str | None = None,
    subset: str = "first",
    source: str | nn.Module | None = None,
    budget: str | None = None,
    time_limit: TimeLimit | float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    data_dir: Path | None = None,
    results_dir: str | Path = "results",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Answers, one per attack, for one subject; each is stored before the next begins.

    `attacks`: names, among them `all` for every attack that fits; `settings`: parameters by attack
    name as given in `attacks` ("" for all of them); `eps` None: the published grid; `budget`:
    quick, standard or deep, whose parameters and number of examples hold where `settings` and `n`
    say nothing else; `source`: the subject on which images are made, where the evaluated one is
    only to judge them (transfer); `backend`: native, or the library that answers instead, foolbox
    or autoattack; `time_limit`: minutes. Everything is checked before this function returns, so
    before the first attack runs. Errors: `UserError`; while iterating also `Interrupted` (Ctrl-C)
    and, after the last answer, `OutOfTime`, both of which keep what is done.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1 is needed")
    if budget is not None:
        budgets.check_level(budget)
    if isinstance(time_limit, int | float):
        time_limit = TimeLimit(time_limit)
    results_dir = Path(results_dir)
    with threads_kept():
        here = machine(device, precision, threads)
        target = resolve(subject, results_dir, here.device)
        chosen = examples_of(target, dataset, n, subset, data_dir, here.device)
        origin = None if source is None else resolve(source, results_dir, here.device)
    seen = target.view(view)
    if origin is not None:
        check_source(origin, target, sweep, backend)
    level = budgets.DEFAULT_LEVEL if budget is None and budgets.ALL in attacks else budget
    if level is not None and n is None:
        chosen = chosen.head(budgets.LEVELS[level])
    names = budgets.expand(attacks, norm, seen, sweep)
    if backend != "native" and budgets.ALL in attacks:
        names = [name for name in names if knows(backend, name)]
    given = budgets.settings_for(names, attacks, settings or {}, norm, level)
    asked = []
    for name in names:
        question = asking.ask(
            name, chosen.info, norm=norm, settings=given[name], eps=eps, sweep=sweep,
            targeted=targeted, backend=backend,
        )  # fmt: skip
        asked.append(Asked(question, chosen))
    # One step first: the diagnostics of the others compare themselves with it.
    asked.sort(key=lambda one: not one.question.name.startswith("fgsm"))
    if budgets.ALL in attacks:
        asked.sort(key=lambda one: sum(one.passes))
    how = Settings(
        machine=here,
        results_dir=results_dir,
        precision=precision,
        seed=seed,
        view=view,
        source=origin,
        batch_size=batch_size,
        fresh=fresh,
        progress=progress or Silent(),
        limit=time_limit,
    )
    return Evaluation(target, asked, how)


def check_source(source: Subject, target: Subject, sweep: str, backend: str) -> None:
    """A `UserError` where images of `source` cannot be asked about `target` like this."""
    if backend != "native":
        raise UserError(f"--source and --backend {backend} exclude each other")
    if sweep == "clipped":
        raise UserError("--source and --sweep clipped exclude each other")
    if source.dataset is not None and target.dataset not in (None, source.dataset):
        raise UserError(
            f"{source.name} was trained on {source.dataset}, {target.name} on {target.dataset}",
            hint="a source of the same data set",
        )


def _one_step(subject: Subject, asked: Asked, how: Settings) -> Record | None:
    """The record of a stored default fgsm on the same examples and budgets, if there is one."""
    question, examples = asked.question, asked.examples
    known = question.norm in ("linf", "l2") and bool(question.grid)
    if question.name.startswith("fgsm") or not known:
        return None
    for sweep in ("envelope", "independent"):
        twin = asking.ask(
            "fgsm", examples.info, norm=question.norm, eps=question.grid, sweep=sweep,
            targeted=question.targeted,
        )  # fmt: skip
        key = answering.question_key(subject, examples, twin, how)
        found = store.find(how.results_dir, subject.about.id, twin.name, key)
        if found is not None:
            return found.record()
    return None
