"""Accuracy on the held-out part of the training set: what chooses the best checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..attacks.pgd import PGD
from ..core import rng
from ..defenses.base import RobustCheck
from ..engine.craft import craft

BATCH = 500

# Catastrophic overfitting (Wong et al. 2020; Rice et al. 2020): one-step accuracy stays up while
# many-step accuracy falls. Both differences in shares of the validation images.
GAP, DROP = 0.15, 0.15


@dataclass(frozen=True)
class Validation:
    """Shares of the held-out images: right on clean images; still right under the phase's attack;
    still right under its one-step version."""

    clean: float
    robust: float | None = None
    one_step: float | None = None

    def score(self) -> tuple[str, float]:
        """Name and value of what the best checkpoint is chosen by."""
        if self.robust is None:
            return "validation_accuracy", self.clean
        return "robust_validation_accuracy", self.robust


def validate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    robust: RobustCheck | None,
    autocast: bool,
) -> Validation:
    """Judge a deployed module, in eval mode, on images (N, C, H, W) in [0, 1], in float32."""
    clean: list[Tensor] = []
    strong: list[Tensor] = []
    weak: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        points, truth = images[start : start + BATCH], labels[start : start + BATCH]
        right = _right(model, points, truth)
        clean.append(right)
        if robust is None:
            continue
        index = torch.arange(start, start + len(points), device=points.device)
        key = rng.row_keys(0, "validation", index)
        attacks = [(robust.attack, strong)]
        if isinstance(robust.attack, PGD):
            one_step = replace(robust.attack, steps=1, rel_step=1.0, random_start=False)
            attacks.append((one_step, weak))
        for attack, found in attacks:
            crafted = craft(
                model, attack, points, truth, robust.eps, key=key, keep="last", autocast=autocast
            )
            found.append(right & _right(model, crafted, truth))
    return Validation(
        _share(clean), _share(strong) if strong else None, _share(weak) if weak else None
    )


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    predicted: Tensor = model(images).argmax(1) == labels
    return predicted


def _share(rows: list[Tensor]) -> float:
    return torch.cat(rows).double().mean().item()


def overfitting(found: Validation, best_before: float, last: bool) -> str | None:
    """One sentence if this looks like catastrophic overfitting, else None.

    It fires when one-step accuracy is 15 points above many-step accuracy, and the latter has
    fallen 15 points below its best, or (at the end of training) below half of the former.
    """
    if found.robust is None or found.one_step is None or found.one_step - found.robust <= GAP:
        return None
    fell = best_before - found.robust > DROP
    if not fell and not (last and found.robust < found.one_step / 2):
        return None
    return (
        f"catastrophic overfitting: {100 * found.one_step:.1f} % of the validation images stand "
        f"one step, {100 * found.robust:.1f} % many (best so far {100 * best_before:.1f} %)"
    )
