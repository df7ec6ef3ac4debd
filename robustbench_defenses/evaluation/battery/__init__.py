"""`--diagnose`: is this robustness real? A small declared budget of attacks and measurements.

The attack under suspicion, on at most 200 images at one eps, is held against itself with other
steps, starts, losses and scales, against random noise, against Square, which needs no gradient, and
against images of other networks; the subject's own gradients are measured. A check is one function
under its card (`checks.py`) in one of the files here; what each costs stands on the card. Sources:
Carlini et al. 2019, Athalye et al. 2018, Croce and Hein 2020 (flags), Pintor et al. 2022
(indicators).
"""

from __future__ import annotations

from ...engine.verdict import evaluation_mode
from .. import diagnostics
from ..checks import Card
from ..facts import buffers_digest
from ..schema import Diagnostic
from . import gradients, measurement, search  # noqa: F401 (they register their checks)
from .probe import CHECKS, IMAGES, Probe

__all__ = ["CHECKS", "IMAGES", "Probe", "battery_passes", "diagnose"]

GREY = 0.5  # Linf: every image can become the same grey
LONG = 9.0  # L2: as far, on images of 28x28


def diagnose(probe: Probe) -> list[Diagnostic]:
    """Every check's verdict, by number; the probe then holds the worst case over all it tried."""
    # The first checks use what the others have run: going backwards makes the progress fair.
    battery = sorted(CHECKS, key=lambda one: -one.card.number)
    cards = [one.card for one in battery] + [one.card for one in diagnostics.CHECKS]
    probe.progress.start(f"diagnose {probe.subject.name}", sum(map(_work, cards)))
    found: list[Diagnostic] = []
    done = 0
    with evaluation_mode(probe.subject.deployed):
        for check in battery:
            found.append(check(probe))
            done += _work(check.card)
            probe.progress.update(done, check.card.name)
        probe.facts.buffers_changed = probe.facts.buffers != buffers_digest(probe.subject)
        evidence = probe.evidence()
        for always in diagnostics.CHECKS:
            budgets = _budgets(probe, always.card.id)
            found.append(always(probe.evidence_at(evidence, *budgets) if budgets else evidence))
            done += _work(always.card)
            probe.progress.update(done, always.card.name)
    probe.progress.finish()
    return sorted(found, key=lambda one: int(one.id[1:]))


def battery_passes() -> tuple[float, float]:
    """Forward and backward passes per image, at most, as the cards declare them (200 images)."""
    cards = [one.card for one in CHECKS] + [one.card for one in diagnostics.CHECKS]
    forward, backward = (
        sum(card.passes[which] * card.images for card in cards) / IMAGES for which in (0, 1)
    )
    return forward, backward


def _work(card: Card) -> int:
    """What a check costs at most, in example-passes."""
    return sum(card.passes) * card.images


def _budgets(probe: Probe, id: str) -> tuple[float, ...]:
    """The budgets that a check wants to see beside the one in question."""
    if id == "D4" and probe.norm == "linf":
        return (max(GREY, probe.eps),)
    if id == "D4" and probe.norm == "l2" and tuple(probe.images.shape[1:]) == (1, 28, 28):
        return (max(LONG, probe.eps),)
    if id == "D30" and probe.subject.trained_eps is not None and probe.larger > probe.eps:
        return (probe.eps, probe.larger)
    return ()
