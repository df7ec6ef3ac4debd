"""adversarial-library. It imports torchvision, which may need help beside a CPU torch."""

from __future__ import annotations

import math

from torch import Tensor, nn

from robustbench_defenses.data.torchvision_shim import torchvision

from . import Ask, Attack, in_batches

torchvision()
from adv_lib import attacks  # noqa: E402

PACKAGE = "adv-lib"
NORM = {"linf": math.inf, "l2": 2.0, "l1": 1.0}


def pgd(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """PGD from random starts."""
    return attacks.pgd_linf(
        model, images, labels, ask.eps, steps=ask.steps, absolute_step_size=ask.step
    )


def _apgd(loss: str) -> Attack:
    def run(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
        return attacks.apgd(
            model, images, labels, ask.eps, NORM[ask.norm], n_iter=ask.steps,
            loss_function=loss, use_large_reps=ask.norm == "l1",
        )  # fmt: skip

    return in_batches(run)


def apgd_t(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """Targeted APGD on the DLR loss."""
    return attacks.apgd_targeted(
        model, images, labels, ask.eps, NORM[ask.norm], n_iter=ask.steps, num_targets=ask.targets
    )


def fab_norm(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """Targeted FAB without a budget."""
    return attacks.fab(
        model, images, labels, NORM[ask.norm], n_iter=ask.steps, restarts=ask.targets,
        targeted_restarts=True,
    )  # fmt: skip


def ddn(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """DDN without its rounding to 256 grey levels."""
    return attacks.ddn(model, images, labels, steps=ask.steps, levels=None)


def fmn(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """FMN with our first step."""
    return attacks.fmn(model, images, labels, NORM[ask.norm], steps=ask.steps, α_init=ask.step)


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """DeepFool."""
    return attacks.df(model, images, labels, steps=ask.steps, norm=NORM[ask.norm])


def cw(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """C&W."""
    return attacks.carlini_wagner_l2(
        model, images, labels, learning_rate=ask.step, binary_search_steps=ask.searches,
        max_iterations=ask.steps,
    )  # fmt: skip


ATTACKS: dict[str, Attack] = {
    "pgd": in_batches(pgd),
    "apgd": _apgd("ce"),
    "apgd_l2": _apgd("ce"),
    "apgd_l1": _apgd("ce"),
    "apgd_dlr": _apgd("dlr"),
    "apgd_t": in_batches(apgd_t),
    "fab_norm": in_batches(fab_norm),
    "ddn": in_batches(ddn),
    "fmn": in_batches(fmn),
    "fmn_l2": in_batches(fmn),
    "deepfool": in_batches(deepfool),
    "deepfool_linf": in_batches(deepfool),
    "cw": in_batches(cw),
}
