"""Adversarial images inside a training step: how defenses craft what they train on."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ..attacks.pgd import PGD
from ..core.errors import UserError
from ..engine.craft import craft
from .base import Batch, Setup

Inner = Literal["fgsm", "bim", "pgd"]


def inner_attack(name: Inner, steps: int = 10) -> PGD:
    """One step of eps; `steps` steps of eps/steps from the image (BIM), or from a random start of
    2.5 eps/steps (PGD)."""
    if name == "fgsm":
        return PGD(steps=1, rel_step=1.0, random_start=False)
    if name == "bim":
        return PGD(steps=steps, rel_step=1 / steps, random_start=False)
    return PGD(steps=steps)


def drawn_eps(batch: Batch, low: float, high: float) -> float:
    """One budget for the whole batch, uniform in [low, high]."""
    return low + (high - low) * batch.share("eps")


def check_interval(low: float, high: float) -> None:
    """A `UserError` where an interval of budgets is none."""
    if low > high:
        raise UserError(f"eps_low {low:g} is larger than eps_high {high:g}")


def crafted(
    setup: Setup,
    network: nn.Module,
    batch: Batch,
    attack: PGD,
    eps: float,
    labels: Tensor | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """The last iterates (B, C, H, W) of `attack` on the batch, the network in evaluation mode.

    `labels` (B,): whose cross-entropy rises (default: the true ones); `target` (B,): whose falls.
    Evaluation mode: BatchNorm crafts with its running statistics (Pang et al. 2021).
    """
    network.eval()
    images = craft(
        network, attack, batch.images, batch.labels if labels is None else labels, eps,
        key=batch.keys("inner"), target=target, keep="last", autocast=setup.autocast,
    )  # fmt: skip
    network.train()
    return images
