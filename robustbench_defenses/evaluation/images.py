"""Image runs: what `rrd attack` and `robustbench_defenses.attack` call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.device import machine
from ..core.errors import UserError
from ..core.norms import check_eps, distance
from ..core.progress import Progress, Silent
from ..core.view import Logits
from ..engine.caller import Cost
from ..engine.craft import craft
from ..engine.verdict import Judge, evaluation_mode
from . import evaluate as answering
from . import examples as choosing
from . import question as asking
from .chosen import examples_of, threads_kept
from .subject import resolve

DEFAULT_IMAGES = 100


@dataclass(frozen=True)
class Attacked:
    """Images made by an attack and what the verdict says of them.

    `images` (N, C, H, W) in [0, 1]; `broken` (N,) bool: they count at the budget; `distance` (N,)
    float64 in the attack's norm; `prediction` (N,) int64 of the images.
    """

    images: Tensor
    broken: Tensor
    distance: Tensor
    prediction: Tensor


def attack_tensors(
    view: Logits,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    eps: float,
    norm: str | None,
    target: Tensor | None,
    keep: str,
    seed: int,
    settings: Mapping[str, object],
    deployed: Logits | None = None,
    index: Tensor | None = None,
    subject: str | None = None,
    batch_size: int = 256,
    report: Callable[[int], None] = lambda done: None,
) -> Attacked:
    """One image run on plain tensors, see `robustbench_defenses.attack`.

    `deployed`: who judges, where that is not the attacked `view` itself; `index` (N,): the
    examples' numbers, which key their randomness (default: their positions).
    """
    _check_tensors(images, labels, target)
    if keep not in ("last", "best_loss"):
        raise UserError(f"unknown keep {keep!r}", hint="last or best_loss")
    entry = asking.named(name, norm)
    made = entry.create(**dict(settings) | ({"norm": norm} if norm and _has_norm(entry) else {}))
    if hasattr(made, "members"):
        raise UserError(
            f"{entry.name} is an ensemble and returns no images of its own",
            hint="rrd eval asks it for verdicts; for images name one of its members",
        )
    check_eps(eps, made.norm)
    everyone = torch.arange(len(images), device=images.device)
    index = everyone if index is None else index
    keys = rng.run_keys(seed, entry.name, index)
    judge = Judge(deployed or view, subject or type(view).__name__, index, Cost())
    with evaluation_mode(view, deployed):
        classes = int(judge.logits(images[:1], everyone[:1]).shape[1])
    for what, numbers in (("labels", labels), ("target", target)):
        if numbers is not None and not bool(((numbers >= 0) & (numbers < classes)).all()):
            span = f"{int(numbers.min())} to {int(numbers.max())}"
            raise UserError(f"{judge.subject} gives {classes} logits, but {what} go from {span}")
    goal = torch.full_like(labels, -1) if target is None else target
    with evaluation_mode(view, deployed):
        parts = []
        for start in range(0, len(images), batch_size):
            part = everyone[start : start + batch_size]
            parts.append(
                craft(
                    view,
                    made,
                    images[part],
                    labels[part],
                    eps,
                    key=keys[part],
                    target=goal[part],
                    keep="best_loss" if keep == "best_loss" else "last",
                )
            )
            report(start + len(part))
        points = torch.cat(parts)
        prediction = judge.logits(points, everyone).argmax(1)
        limit = torch.full((len(images),), eps, dtype=torch.float64, device=images.device)
        broken, length = judge.judge(points, images, labels, goal, limit, made.norm, everyone)
    return Attacked(points, broken, length, prediction)


def _has_norm(entry: Any) -> bool:
    return any(param.name == "norm" for param in entry.params)


def _check_tensors(images: Tensor, labels: Tensor, target: Tensor | None) -> None:
    if images.dim() < 2 or len(images) == 0 or not images.is_floating_point():
        raise UserError(
            f"images of shape {tuple(images.shape)} and type {images.dtype} are not float (N, ...)"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UserError("images must lie in [0, 1]", hint="divide 8-bit images by 255")
    for name, classes in (("labels", labels), ("target", target)):
        if classes is not None and (classes.is_floating_point() or classes.is_complex()):
            raise UserError(f"{name} of type {classes.dtype}; class numbers are needed")
        if classes is not None and classes.shape != (len(images),):
            raise UserError(f"{name} of shape {tuple(classes.shape)} for {len(images)} images")
        if classes is not None and classes.dtype != torch.int64:
            raise UserError(f"{name} of type {classes.dtype}", hint="int64 class numbers")


@dataclass(frozen=True)
class Images:
    """What an image run returned; all tensors have one row per example.

    `clean`, `adversarial` (N, C, H, W) in [0, 1]; `labels`, `before`, `after`, `index` (N,) int64;
    `broken` (N,) bool: counts by the verdict at eps; `distances`: norm -> (N,) float64.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    index: Tensor
    broken: Tensor
    distances: dict[str, Tensor]
    eps: float
    norm: str
    attack: str
    subject: str
    dataset: str

    def arrays(self) -> dict[str, Any]:
        """All of it as numpy arrays for an npz file."""
        named = {f"distance_{norm}": values for norm, values in self.distances.items()}
        tensors = {
            "clean": self.clean,
            "adversarial": self.adversarial,
            "label": self.labels,
            "prediction_before": self.before,
            "prediction_after": self.after,
            "index": self.index,
            "broken": self.broken,
            **named,
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def attack_images(
    subject: str | nn.Module,
    attack: str = "pgd",
    *,
    eps: float | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    n: int | None = None,
    settings: Mapping[str, object] | None = None,
    targeted: bool = False,
    keep: str = "last",
    view: str | None = None,
    subset: str = "first",
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    results_dir: Path = Path("results"),
    progress: Progress | None = None,
) -> Images:
    """Adversarial images of one run of an attack at one budget: the last iterate of every example.

    `n` None: at most 100, -1: all; `keep`: `last` or `best_loss`; `eps` None: the middle of the
    published grid. Nobody leaves early; misclassified clean images are attacked too.
    """
    with threads_kept():
        here = machine(device, "fp32", threads)
        target = resolve(subject, results_dir, here.device)
        chosen = examples_of(target, dataset, n, subset, data_dir, here.device)
        if n is None:
            chosen = chosen.head(DEFAULT_IMAGES)
    question = asking.ask(
        attack, chosen.info, norm=norm, settings=settings, eps=eps, targeted=targeted
    )
    if eps is None:
        eps = question.budgets[(len(question.budgets) - 1) // 2]
    seen = target.view(view)
    wanted = choosing.targets(chosen, chosen.info.classes, seed) if targeted else None
    progress = progress or Silent()
    progress.start(f"{question.name} on {target.name}", len(chosen))
    judge = Judge(target.deployed, target.name, chosen.index, Cost())
    everyone = torch.arange(len(chosen), device=here.device)
    with threads_kept(here.threads), answering.guards(target, question):
        with evaluation_mode(target.deployed):
            before = judge.logits(chosen.images, everyone).argmax(1)
        made = attack_tensors(
            seen.logits,
            chosen.images,
            chosen.labels,
            question.name,
            eps=eps,
            norm=None,
            target=wanted,
            keep=keep,
            seed=seed,
            settings=question.parameters,
            deployed=target.deployed,
            index=chosen.index,
            subject=target.name,
            batch_size=batch_size or 256,
            report=progress.update,
        )
    progress.finish(f"{int(made.broken.sum())} of {len(chosen)} misclassified")
    return Images(
        clean=chosen.images,
        adversarial=made.images,
        labels=chosen.labels,
        before=before,
        after=made.prediction,
        index=chosen.index,
        broken=made.broken | (before != chosen.labels),
        distances={
            name: distance(made.images, chosen.images, name) for name in ("linf", "l2", "l1", "l0")
        },
        eps=eps,
        norm=question.norm,
        attack=question.name,
        subject=target.name,
        dataset=chosen.info.name,
    )
