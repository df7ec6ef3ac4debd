"""`diagnose`: is this robustness real? What `rrd eval --diagnose` calls."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..core.device import machine
from ..core.progress import Progress, Silent
from ..engine.twin import search_twin
from . import battery
from . import evaluate as answering
from . import question as asking
from .chosen import examples_of
from .schema import Diagnostic
from .subject import resolve


@dataclass(frozen=True)
class Diagnosis:
    """Is this robustness real? `left`: share that survives everything tried at `eps`; `base`: what
    PGD-40 alone leaves; passes are example-passes."""

    subject: str
    dataset: str
    norm: str
    eps: float
    n: int
    checks: list[Diagnostic]
    base: float
    left: float
    forward_passes: int
    backward_passes: int
    seconds: float

    @property
    def errors(self) -> list[Diagnostic]:
        """The checks that fired as errors."""
        return [check for check in self.checks if check.fired and check.severity == "error"]

    def document(self) -> dict[str, Any]:
        """The diagnosis in JSON's terms."""
        checks = [check.model_dump(mode="json") for check in self.checks]
        return {**asdict(self), "checks": checks, "errors": len(self.errors)}


def diagnose(
    subject: str | nn.Module,
    *,
    dataset: str | None = None,
    eps: float | None = None,
    norm: str = "linf",
    n: int | None = None,
    subset: str = "first",
    view: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    data_dir: Path | None = None,
    results_dir: str | Path = "results",
    progress: Progress | None = None,
) -> Diagnosis:
    """A small battery of attacks and measurements on at most 200 images at one budget.

    `eps` None: the middle of the published grid. Errors: `UserError`.
    """
    begun = time.perf_counter()
    here = machine(device, precision, threads)
    target = resolve(subject, Path(results_dir), here.device)
    chosen = examples_of(target, dataset, n, subset, data_dir, here.device)
    question = asking.ask("pgd", chosen.info, norm=norm, eps=eps)
    budget = eps if eps is not None else question.budgets[(len(question.budgets) - 1) // 2]
    twin = search_twin(target.view(view), chosen.images, here.precision)
    probe = battery.probe_of(target, chosen, twin, budget, question.norm, seed)
    probe.progress = progress or Silent()
    with answering.guards(target, question):
        checks = battery.diagnose(probe)
    return Diagnosis(
        subject=target.name,
        dataset=chosen.info.name,
        norm=question.norm,
        eps=budget,
        n=len(probe.labels),
        checks=checks,
        base=float(probe.base.mean()),
        left=probe.left,
        forward_passes=probe.cost.forward,
        backward_passes=probe.cost.backward,
        seconds=time.perf_counter() - begun,
    )
