"""`evaluate`: what `rrd eval` and the Python API call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import nn

from ..core.device import machine
from ..core.errors import UserError
from ..core.progress import Progress, Silent
from . import evaluate as answering
from . import question as asking
from . import store
from .chosen import examples_of, threads_kept
from .evaluate import Answer, Settings
from .examples import Examples
from .record import Record
from .subject import Subject, resolve


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
    view: str | None = None,
    subset: str = "first",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    data_dir: Path | None = None,
    results_dir: str | Path = "results",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Iterator[Answer]:
    """Answers, one per attack, for one subject; each is stored before the next begins.

    `settings`: parameters by attack name as given in `attacks` ("" for all of them); `eps` None:
    the published grid. Everything is checked before this function returns, so before the first
    attack runs. Errors: `UserError`; Ctrl-C: `Interrupted`, finished blocks of examples are kept.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1 is needed")
    results_dir = Path(results_dir)
    with threads_kept():
        here = machine(device, precision, threads)
        target = resolve(subject, results_dir, here.device)
        chosen = examples_of(target, dataset, n, subset, data_dir, here.device)
    target.view(view)
    questions = [
        asking.ask(
            name, chosen.info, norm=norm, settings=_settings_of(name, settings or {}), eps=eps,
            sweep=sweep, targeted=targeted,
        )
        for name in attacks
    ]  # fmt: skip
    how = Settings(
        machine=here,
        results_dir=results_dir,
        precision=precision,
        seed=seed,
        view=view,
        batch_size=batch_size,
        fresh=fresh,
        progress=progress or Silent(),
    )
    # One step first: the diagnostics of the others compare themselves with it.
    questions.sort(key=lambda question: not question.name.startswith("fgsm"))
    return _answers(target, chosen, questions, how)


def _answers(
    subject: Subject, examples: Examples, questions: list[asking.AttackQuestion], how: Settings
) -> Iterator[Answer]:
    for question in questions:
        with threads_kept(how.machine.threads):
            one_step = _one_step(subject, examples, question, how)
            answer = answering.answer(subject, examples, question, how, one_step)
        yield answer


def _settings_of(name: str, settings: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    return {**settings.get("", {}), **settings.get(name, {})}


def _one_step(
    subject: Subject, examples: Examples, question: asking.AttackQuestion, how: Settings
) -> Record | None:
    """The record of a stored default fgsm on the same examples and budgets, if there is one."""
    if question.name.startswith("fgsm") or question.norm not in ("linf", "l2"):
        return None
    for sweep in asking.SWEEPS:
        twin = asking.ask(
            "fgsm", examples.info, norm=question.norm, eps=question.grid, sweep=sweep,
            targeted=question.targeted,
        )  # fmt: skip
        key = answering.question_key(subject, examples, twin, how)
        found = store.find(how.results_dir, subject.about.id, twin.name, key)
        if found is not None:
            return found.record()
    return None
