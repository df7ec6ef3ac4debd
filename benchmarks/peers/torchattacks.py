"""torchattacks. Its AutoAttack makes 10 iterations instead of 100; here its members make 100.

A model with attributes `mean` and `std` would be normalised a second time: the comparison wraps its
networks, so that none shows such attributes.
"""

from __future__ import annotations

from typing import Any

import torchattacks
from torch import Tensor, nn

from . import Ask, Attack, in_batches

PACKAGE = "torchattacks"
NORM = {"linf": "Linf", "l2": "L2"}


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """One step from the image."""
    return torchattacks.FGSM(model, eps=ask.eps)(images, labels)


def bim(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """BIM."""
    return torchattacks.BIM(model, eps=ask.eps, alpha=ask.step, steps=ask.steps)(images, labels)


def mim(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """MI-FGSM."""
    attack = torchattacks.MIFGSM(model, eps=ask.eps, alpha=ask.step, steps=ask.steps, decay=1.0)
    return attack(images, labels)


def pgd(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """PGD from random starts."""
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[ask.norm]
    return kind(model, eps=ask.eps, alpha=ask.step, steps=ask.steps)(images, labels)


def _common(ask: Ask) -> dict[str, Any]:
    return {"norm": NORM[ask.norm], "eps": ask.eps, "seed": ask.seed, "n_restarts": 1}


def apgd(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """APGD on cross-entropy."""
    return torchattacks.APGD(model, steps=ask.steps, loss="ce", **_common(ask))(images, labels)


def apgd_dlr(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """APGD on the DLR loss."""
    return torchattacks.APGD(model, steps=ask.steps, loss="dlr", **_common(ask))(images, labels)


def _apgd_t(model: nn.Module, ask: Ask) -> Any:
    return torchattacks.APGDT(model, steps=ask.steps, n_classes=ask.targets + 1, **_common(ask))


def _fab_t(model: nn.Module, ask: Ask) -> Any:
    return torchattacks.FAB(
        model, steps=ask.steps, multi_targeted=True, n_classes=ask.targets + 1, **_common(ask)
    )


def _square(model: nn.Module, ask: Ask) -> Any:
    return torchattacks.Square(model, n_queries=ask.queries, resc_schedule=False, **_common(ask))


def apgd_t(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """Targeted APGD."""
    return _apgd_t(model, ask)(images, labels)


def fab_t(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """Targeted FAB at a budget."""
    return _fab_t(model, ask)(images, labels)


def square(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """Square with the schedule of AutoAttack."""
    return _square(model, ask)(images, labels)


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """The standard four at their published budgets."""
    first = torchattacks.APGD(model, steps=ask.steps, loss="ce", **_common(ask))
    members = [first, _apgd_t(model, ask), _fab_t(model, ask), _square(model, ask)]
    return torchattacks.MultiAttack(members)(images, labels)


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """DeepFool, one image at a time."""
    return torchattacks.DeepFool(model, steps=ask.steps)(images, labels)


def cw(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """C&W has no search for its constant here: as many steps in all, at constant 1."""
    steps = ask.searches * ask.steps
    return torchattacks.CW(model, c=1, steps=steps, lr=ask.step)(images, labels)


_ALL: dict[str, Attack] = {
    "fgsm": fgsm,
    "bim": bim,
    "mim": mim,
    "pgd": pgd,
    "pgd_l2": pgd,
    "apgd": apgd,
    "apgd_l2": apgd,
    "apgd_dlr": apgd_dlr,
    "apgd_t": apgd_t,
    "fab_t": fab_t,
    "square": square,
    "autoattack": autoattack,
    "deepfool": deepfool,
    "cw": cw,
}
ATTACKS = {name: in_batches(attack) for name, attack in _ALL.items()}
