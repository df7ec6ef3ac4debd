"""AutoAttack and its parts as published on the package index (Croce and Hein 2020)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...core.errors import UserError
from .call import Call, Make, Run, Work, only

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def _untargeted(targeted: bool) -> None:
    if targeted:
        raise UserError("pyautoattack takes no target class", hint="--backend native --targeted")


def _enough_classes(classes: int, targets: bool) -> None:
    needed = 4 if targets else 3
    if classes < needed:
        form = "targeted " if targets else ""
        raise UserError(
            f"pyautoattack's {form}DLR loss needs {needed} classes or more, not {classes}",
            hint="--backend native has a substitute where there are fewer (rrd info autoattack)",
        )


def _apgd(attack: Any, targeted: bool, classes: int) -> Call:
    _untargeted(targeted)
    only(attack, "pyautoattack", logit_scale=1.0)
    if attack.loss == "margin" or (attack.targets and attack.loss != "dlr"):
        kind = "targeted APGD" if attack.targets else "APGD"
        raise UserError(f"pyautoattack's {kind} has no loss {attack.loss}")
    if attack.loss == "dlr":
        _enough_classes(classes, attack.targets > 0)

    def run(model: nn.Module, work: Work) -> Iterator[Tensor]:
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        named: dict[str, Any] = {
            "n_iter": attack.steps,
            "norm": NORMS[attack.norm],
            "n_restarts": attack.restarts,
            "eps": work.eps,
            "seed": work.seed,
            "rho": attack.rho,
            "use_largereps": attack.large_radius,
            "device": work.images.device,
        }
        if attack.targets:
            targets = min(attack.targets, classes - 1)
            made = APGDAttack_targeted(model, n_target_classes=targets, **named)
        else:
            made = APGDAttack(model, loss=attack.loss, **named)
        yield made.perturb(work.images, work.labels)

    return Call((("apgd", run),), 1, "its first checkpoint compares the oldest loss with 0")


def _fab(attack: Any, targeted: bool, classes: int) -> Call:
    _untargeted(targeted)
    targets = min(attack.targets, classes - 1)

    def run(model: nn.Module, work: Work) -> Iterator[Tensor]:
        from pyautoattack.fab_pt import FABAttack_PT

        names = ("alpha_max", "eta", "beta")
        made = FABAttack_PT(
            model,
            norm=NORMS[attack.norm],
            n_iter=attack.steps,
            seed=work.seed,
            device=work.images.device,
            **{name: getattr(attack, name) for name in names},
        )
        # `perturb` would stop at the first target that succeeds, not at the nearest one.
        for rank in range(2, targets + 2):
            made.target_class = rank
            yield made.attack_single_run(work.images, work.labels, is_targeted=True)

    return Call((("fab", run),), 1, "asks twice per step")


def _square(attack: Any, targeted: bool, classes: int) -> Call:
    _untargeted(targeted)

    def run(model: nn.Module, work: Work) -> Iterator[Tensor]:
        from pyautoattack.square import SquareAttack

        made = SquareAttack(
            model,
            norm=NORMS[attack.norm],
            n_queries=attack.n_queries,
            eps=work.eps,
            p_init=attack.p_init,
            n_restarts=attack.restarts,
            seed=work.seed,
            resc_schedule=attack.rescale_schedule,
            device=work.images.device,
        )
        yield made.perturb(work.images, work.labels)

    return Call((("square", run),), 1, "the images of a batch share their windows and signs")


_VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


def _autoattack(attack: Any, targeted: bool, classes: int) -> Call:
    _untargeted(targeted)
    _enough_classes(classes, attack.version != "rand")

    def members(version: str) -> tuple[tuple[str, Run], ...]:
        return tuple(
            (name.replace("-", "_"), functools.partial(_run, attack, version, name, classes))
            for name in _VERSIONS[version]
        )

    if attack.version == "auto":
        return Call(members("standard"), when_random=members("rand"))
    return Call(members(attack.version))


def _run(
    attack: Any, version: str, name: str, classes: int, model: nn.Module, work: Work
) -> Iterator[Tensor]:
    """One part of a version as the library sets it up: restarts, targets and schedules are its."""
    from pyautoattack import AutoAttack

    made = AutoAttack(
        model,
        norm=NORMS[attack.norm],
        eps=work.eps,
        seed=work.seed,
        version=version,
        device=work.images.device,
    )
    made.attacks_to_run = [name]
    for part in (made.apgd, made.apgd_targeted):
        part.n_iter = part.n_iter_orig = attack.steps
        part.n_iter_2 = max(int(0.22 * attack.steps), 1)
        part.n_iter_min = max(int(0.06 * attack.steps), 1)
        part.size_decr = max(int(0.03 * attack.steps), 1)
    made.fab.n_iter = attack.steps
    made.square.n_queries = attack.n_queries
    # With fewer classes than targets the library would end in an error.
    for part in (made.apgd_targeted, made.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    points, _ = made.run_standard_evaluation(work.images, work.labels, batch_size=len(work.images))
    yield points


CALLS: dict[str, Make] = {
    "apgd_ce": _apgd,
    "fab_t": _fab,
    "square": _square,
    "autoattack": _autoattack,
}
