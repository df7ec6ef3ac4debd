"""Named losses of gradient attacks; every one is to be *increased*, untargeted and targeted alike.

Rows with `target >= 0` use the targeted form. Losses are per example and never averaged, so that
the gradient of an image does not depend on its batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocol import Loss, Rows


def _select(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.clamp_min(0)[:, None])[:, 0]


def _largest_other(logits: Tensor, classes: Tensor) -> Tensor:
    """The largest logit (B,) apart from the one of `classes` (B,)."""
    mask = F.one_hot(classes.clamp_min(0), logits.shape[1]).bool()
    return logits.masked_fill(mask, -torch.inf).amax(1)


def ce(logits: Tensor, rows: Rows) -> Tensor:
    """Cross-entropy of the true class; targeted: minus the cross-entropy of the target."""
    targeted = rows.target >= 0
    wanted = torch.where(targeted, rows.target, rows.labels)
    value = F.cross_entropy(logits, wanted, reduction="none")
    return torch.where(targeted, -value, value)


def margin(logits: Tensor, rows: Rows) -> Tensor:
    """max_{k != y} Z_k - Z_y (Carlini and Wagner 2017); targeted: Z_t - max_{k != t} Z_k."""
    targeted = rows.target >= 0
    wanted = torch.where(targeted, rows.target, rows.labels)
    value = _largest_other(logits, wanted) - _select(logits, wanted)
    return torch.where(targeted, -value, value)


def dlr(logits: Tensor, rows: Rows) -> Tensor:
    """Difference of logits ratio (Croce and Hein 2020): unchanged by shift and scale of logits.

    Untargeted: -(Z_y - max_{k != y} Z_k) / (Z_(1) - Z_(3)); targeted towards t:
    -(Z_y - Z_t) / (Z_(1) - (Z_(3) + Z_(4)) / 2). With too few classes for the denominator there is
    none: two classes use the plain margin, and so does a target among three, where Z_(1) - Z_(3)
    would be the numerator itself for the last class. Classes that the subject rules out (logit
    -inf) do not count.
    """
    ordered = logits.sort(dim=1, descending=True).values
    classes = logits.shape[1]
    if classes == 2:
        return margin(logits, rows)
    ruled_out = ordered[:, 2].isinf()  # fewer than three classes are left: the plain margin
    spread = (ordered[:, 0] - ordered[:, 2]).masked_fill(ruled_out, 1.0)
    untargeted = _largest_other(logits, rows.labels) - _select(logits, rows.labels)
    value = untargeted / (spread + 1e-12)
    if bool((rows.target >= 0).any()):
        fourth = ordered[:, 3] if classes > 3 else torch.full_like(ordered[:, 0], -torch.inf)
        few = fourth.isinf()
        lower = (ordered[:, 2] + fourth) / 2
        spread = (ordered[:, 0] - lower).masked_fill(few, 1.0)
        ratio = (_select(logits, rows.target) - _select(logits, rows.labels)) / (spread + 1e-12)
        targeted = torch.where(few, margin(logits, rows), ratio)
        value = torch.where(rows.target >= 0, targeted, value)
    return value


LOSSES: dict[str, Loss] = {"ce": ce, "margin": margin, "dlr": dlr}


def loss_of(name: str | Loss) -> Loss:
    """The loss function behind a name; a callable is returned as it is."""
    return LOSSES[name] if isinstance(name, str) else name


def misclassified(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Rows (B,) bool that count: predicted class is the target, or untargeted: not the label."""
    predicted = logits.argmax(1)
    return torch.where(target >= 0, predicted == target, predicted != labels)


def rivals(logits: Tensor, labels: Tensor) -> Tensor:
    """The wrong classes (N, K - 1) int64 of each example by falling logits (N, K)."""
    order = logits.argsort(dim=1, descending=True, stable=True)
    return order[order != labels[:, None]].view(len(labels), -1)
