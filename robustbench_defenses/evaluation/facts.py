"""What is measured of a subject itself, before it is attacked; unusable subjects are refused."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.errors import UserError
from ..core.identity import tensors_digest
from ..engine.caller import Cost
from ..engine.verdict import Judge, evaluation_mode
from .examples import Examples
from .subject import Subject


@dataclass
class Facts:
    """Evidence for the diagnostics.

    `coupling`: largest change of a logit, as a share of the logit range, when an image is asked
    alone; `trained_mode`: the subject was given in training mode; `buffers`: their digest;
    `random`: it says that its answers are random; `trained_eps`: the budget of its training.
    """

    classes: int
    pixel_range: tuple[float, float]
    probabilities: bool
    coupling: float
    trained_mode: bool
    buffers: str
    buffers_changed: bool = False
    random: bool = False
    trained_eps: float | None = None
    dataset: str = ""


def buffers_digest(subject: Subject) -> str:
    """The digest of the attacked module's buffers; empty for a bare callable."""
    module = subject.views[0].module
    return "" if module is None else tensors_digest(dict(module.named_buffers()))


def look(subject: Subject, examples: Examples) -> Facts:
    """Facts from a few forward passes; also refuses a subject with unusable outputs."""
    module = subject.views[0].module
    trained_mode = subject.about.kind == "file" and module is not None and module.training
    with evaluation_mode(subject.deployed):
        logits, alone = _outputs(subject, examples)
    check_classes(subject.name, int(logits.shape[1]), examples)
    # Classes that a subject rules out (-inf) are left aside.
    finite = torch.isfinite(logits) & torch.isfinite(alone)
    low = logits.masked_fill(~finite, torch.inf).amin()
    spread = (logits.masked_fill(~finite, -torch.inf).amax() - low).clamp_min(1e-12)
    change = (alone - logits).masked_fill(~finite, 0).abs().max()
    return Facts(
        classes=int(logits.shape[1]),
        pixel_range=(float(examples.images.min()), float(examples.images.max())),
        probabilities=bool(
            (logits >= -1e-5).all()
            and (logits <= 1 + 1e-5).all()
            and ((logits.sum(1) - 1).abs() < 1e-5).all()
        ),
        coupling=float(change / spread),
        trained_mode=trained_mode,
        buffers=buffers_digest(subject),
        random=subject.about.random or subject.views[0].random,
        trained_eps=subject.trained_eps,
        dataset=examples.info.name,
    )


def _outputs(subject: Subject, examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (M, K) of the first images as one batch, and of each image alone."""
    images = examples.images[:8]
    judge = Judge(subject.deployed, subject.name, examples.index, Cost())
    few = torch.arange(len(images), device=images.device)
    logits = judge.logits(images, few)
    alone = [judge.logits(images[i : i + 1], few[i : i + 1]) for i in range(len(images))]
    return logits, torch.cat(alone)


def check_classes(name: str, classes: int, examples: Examples) -> None:
    """A `UserError` where a subject of so many `classes` cannot name every label."""
    top = int(examples.labels.max())
    if classes < 2 or classes <= top or classes < examples.info.classes:
        raise UserError(
            f"{name} gives {classes} logits per image, but {examples.info.name} "
            f"has {examples.info.classes} classes"
        )
