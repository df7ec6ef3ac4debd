"""`diagnose`: is this robustness real? What `rrd eval --diagnose` calls."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.device import Machine, machine
from ..core.errors import UserError
from ..core.progress import Progress, Silent
from ..engine.twin import search_twin
from . import battery, checks
from . import evaluate as answering
from . import question as asking
from .battery.twins import Twins
from .chosen import examples_of, threads_kept
from .examples import Examples
from .facts import look
from .schema import Diagnostic
from .subject import Subject, resolve

FAULT = {
    "measurement": "it is not measured rightly",
    "attack": "the attack is at fault",
    "gradients": "its gradients are masked",
    "number": "the number is not credible",
}
# What is told first where several checks fired as errors: a faulty measurement explains all the
# rest, then a faulty attack, then gradients (those that say why before those that say that).
TOLD = ("D17", "D14", "D13", "D15", "D31", "D26", "D16", "D20", "D21", "D25", "D7", "D18", "D6")
# An attack that leaves so much more (share of the images) than the worst case is too weak to quote.
WEAK = 0.1


@dataclass(frozen=True)
class Diagnosis:
    """Is this robustness real? `attack`: the one under suspicion; `base`: share that it leaves at
    `eps`; `left`: share that survives everything that was tried (`used`); passes are example-passes
    over `n` images."""

    subject: str
    dataset: str
    attack: str
    norm: str
    eps: float
    n: int
    checks: list[Diagnostic]
    base: float
    left: float
    used: list[str]
    forward_passes: int
    backward_passes: int
    seconds: float

    def fired(self, severity: str) -> list[Diagnostic]:
        """The checks that fired at this severity."""
        return [check for check in self.checks if check.fired and check.severity == severity]

    @property
    def errors(self) -> list[Diagnostic]:
        """The checks that fired as errors: the number must not be shown without saying so."""
        return self.fired("error")

    @property
    def conclusion(self) -> str:
        """What it all means, in a few sentences."""
        alone = f"{self.attack} alone says {100 * self.base:.1f} %"
        bound = (
            f"Robust accuracy at eps {self.eps:.3g} is at most {100 * self.left:.1f} % (worst case "
            f"over {_listed(self.used)}); {alone}."
        )
        if self.errors:
            order = {id: place for place, id in enumerate(TOLD)}
            first = min(self.errors, key=lambda one: order.get(one.id, len(order)))
            card = checks.find(first.id)
            return f"No, {FAULT[card.blames]}: {card.cause}. {bound} What to do: {card.do}."
        if self.base < 0.02:
            return f"There is little robustness to doubt at eps {self.eps:.3g}: {alone}."
        if self.base - self.left > WEAK:
            return (
                f"Partly: no check finds masked gradients, but {self.attack} is too weak for it. "
                f"{bound} A stronger attack may leave less still."
            )
        return f"Nothing here speaks against it. {bound} A stronger attack may leave less."

    def document(self) -> dict[str, Any]:
        """The diagnosis in JSON's terms."""
        return {
            "subject": self.subject,
            "dataset": self.dataset,
            "attack": self.attack,
            "norm": self.norm,
            "eps": self.eps,
            "n": self.n,
            "robust_accuracy": self.base,
            "worst_case": self.left,
            "used": self.used,
            "conclusion": self.conclusion,
            "summary": {
                "errors": len(self.errors),
                "warnings": len(self.fired("warning")),
            },
            "checks": [check.model_dump(mode="json") for check in self.checks],
            "cost": {
                "forward_passes": self.forward_passes,
                "backward_passes": self.backward_passes,
                "seconds": self.seconds,
            },
        }


def diagnose(
    subject: str | nn.Module,
    attacks: Sequence[str] = ("pgd",),
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    **question: Any,
) -> Diagnosis:
    """A battery of attacks and measurements on at most 200 images at one budget.

    Further options: those of `prepare`, and `progress`. Errors: `UserError`.
    """
    begun = time.perf_counter()
    with threads_kept():
        here = machine(device, precision, threads)
        probe = prepare(subject, attacks, here, **question)
    with threads_kept(here.threads), answering.guards(probe.subject, probe.question):
        found = battery.diagnose(probe)
    return Diagnosis(
        subject=probe.subject.name,
        dataset=probe.examples.info.name,
        attack=probe.short,
        norm=probe.norm,
        eps=probe.eps,
        n=probe.n,
        checks=found,
        base=float(probe.base.mean()),
        left=probe.left,
        used=list(probe.used),
        forward_passes=probe.cost.forward,
        backward_passes=probe.cost.backward,
        seconds=time.perf_counter() - begun,
    )


def prepare(
    subject: str | nn.Module,
    attacks: Sequence[str],
    here: Machine,
    *,
    view: str | None = None,
    seed: int = 0,
    results_dir: str | Path = "results",
    progress: Progress | None = None,
    **question: Any,
) -> battery.Probe:
    """A probe of the subject on the first 200 of the examples, before any check.

    Under suspicion is the first of `attacks` that makes a number of steps inside a ball, with its
    `settings`; without one, PGD. `eps` None: the middle of the published grid. Further options:
    those of `suspected`.
    """
    target, few, doubted = suspected(
        subject, attacks, here.device, results_dir=results_dir, **question
    )
    with answering.guards(target, doubted):
        twin = search_twin(target.view(view), few.images, here.precision)
        facts = look(target, few)
    return battery.Probe(
        subject=target,
        twin=twin,
        examples=few,
        eps=doubted.budgets[(len(doubted.budgets) - 1) // 2],
        question=doubted,
        facts=facts,
        twins=_twins(target, few, Path(results_dir)),
        precision=here.precision,
        seed=seed,
        view=view,
        progress=progress or Silent(),
    )


def suspected(
    subject: str | nn.Module,
    attacks: Sequence[str],
    device: torch.device,
    *,
    dataset: str | None = None,
    eps: float | None = None,
    norm: str | None = None,
    n: int | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    subset: str = "first",
    data_dir: Path | None = None,
    results_dir: str | Path = "results",
) -> tuple[Subject, Examples, asking.AttackQuestion]:
    """Who is diagnosed, on which images, and under which attack: all that can be wrong with the
    question is found here, before anything is attacked. Errors: `UserError`."""
    target = resolve(subject, Path(results_dir), device)
    few = examples_of(target, dataset, n, subset, data_dir, device).head(battery.IMAGES)
    try:
        question = _suspect(attacks, settings or {}, few, norm, eps)
    except UserError as error:
        if eps is not None:
            raise
        raise UserError(f"--diagnose doubts one budget: {error.message}", hint="--eps E") from error
    if not question.budgets:
        raise UserError("--diagnose needs a budget above 0", hint="--eps E")
    return target, few, question


def _suspect(
    attacks: Sequence[str],
    settings: Mapping[str, Mapping[str, object]],
    examples: Examples,
    norm: str | None,
    eps: float | None,
) -> asking.AttackQuestion:
    """The first attack that makes a number of steps inside a ball; PGD where there is none."""
    asked = [
        asking.ask(
            name, examples.info, norm=norm, eps=eps,
            settings={**settings.get("", {}), **settings.get(name, {})},
        )
        for name in attacks
    ]  # fmt: skip
    for question in asked:
        plain = not question.minimum and not hasattr(question.attack, "members")
        if plain and isinstance(getattr(question.attack, "steps", None), int):
            return question
    own = norm if norm is not None or not asked else asked[0].norm
    return asking.ask("pgd", examples.info, norm=own, eps=eps)


def _twins(subject: Subject, examples: Examples, results_dir: Path) -> Twins:
    return Twins(
        results_dir=results_dir,
        dataset=examples.info.name,
        shape=tuple(examples.images.shape[1:]),
        own=subject.about.id.partition("@")[0].partition("[")[0],
        device=examples.images.device,
    )


def _listed(names: list[str]) -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return "".join(names) or "nothing"
    return f"{', '.join(names[:-1])} and {names[-1]}"
