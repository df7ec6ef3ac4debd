"""Image runs: what `rrd attack` and `robustbench_defenses.attack` call.

Attacks with a budget return the last (or best-loss) iterate of every example, and nobody leaves
early. Minimum-norm attacks and ensembles return what they look for: the nearest image that the
verdict accepted. Where they found none they return their last iterate, marked as not broken.
"""

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
from ..core.norms import check_eps, distance, per_row
from ..core.progress import Progress, Silent
from ..core.view import Logits, View
from ..engine.caller import Cost
from ..engine.craft import Keep, craft
from ..engine.ensemble import search_for
from ..engine.guides import Pool
from ..engine.minimum import STRETCHES
from ..engine.search import Block
from ..engine.twin import search_twin
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
    eps: float | None,
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
    entry = asking.named(name, norm)
    made = entry.create(**dict(settings) | ({"norm": norm} if norm and _has_norm(entry) else {}))
    nearest = bool(getattr(made, "minimum", False))
    searching = nearest or hasattr(made, "members")
    _check_request(entry.name, made.norm, eps, keep, nearest, searching)
    everyone = torch.arange(len(images), device=images.device)
    index = everyone if index is None else index
    judge = Judge(deployed or view, subject or type(view).__name__, index, Cost())
    goal = torch.full_like(labels, -1) if target is None else target
    job = _Job(view, made, entry.name, images, labels, goal, index, eps, seed, batch_size, judge)
    with evaluation_mode(view, deployed):
        _check_classes(judge, images, labels, target)
        if searching:
            points = _searched(job, report)
        else:
            points = _crafted(job, "best_loss" if keep == "best_loss" else "last", report)
        broken, length = _verdict(job, points)
        prediction = judge.logits(points, everyone).argmax(1)
    return Attacked(points, broken, length, prediction)


@dataclass(frozen=True)
class _Job:
    """One image run: who is attacked by what, on which examples."""

    view: Logits
    attack: Any
    name: str
    images: Tensor
    labels: Tensor
    target: Tensor
    index: Tensor
    eps: float | None
    seed: int
    batch_size: int
    judge: Judge


def _crafted(job: _Job, keep: Keep, report: Callable[[int], None]) -> Tensor:
    """The last or best-loss iterates (N, C, H, W)."""
    assert job.eps is not None
    keys = rng.run_keys(job.seed, job.name, job.index)
    everyone, parts = torch.arange(len(job.images), device=job.images.device), []
    for part in torch.split(everyone, job.batch_size):
        parts.append(
            craft(
                job.view,
                job.attack,
                job.images[part],
                job.labels[part],
                job.eps,
                key=keys[part],
                target=job.target[part],
                keep=keep,
                pool=Pool.of(job.images, job.labels),
            )
        )
        report(int(part[-1]) + 1)
    return torch.cat(parts)


def _searched(job: _Job, report: Callable[[int], None]) -> Tensor:
    """The nearest verified images (N, C, H, W), last iterates where there are none.

    The search runs in float32. Verdicts at the boundary may hang on how a pass was batched: an
    image that a pass of all images refuses is moved away from its clean image by tiny stretches.
    """
    search = search_for(
        job.attack,
        twin=search_twin(View("attacked", job.view), job.images, "fp32"),
        deployed=job.judge.deployed,
        block=Block(
            images=job.images,
            labels=job.labels,
            target=job.target,
            numbers=job.index,
            grid=() if job.eps is None else (job.eps,),
            pool=Pool.of(job.images, job.labels),
        ),
        subject=job.judge.subject,
        seed=job.seed,
        attack_name=job.name,
        batch_size=job.batch_size,
        report=lambda done, share: report(int(share * len(job.images))),
        keep_points=True,
    )
    out = search.run()
    assert out.points is not None
    points: Tensor = out.points
    found = torch.isfinite(out.distance) & (out.distance > 0)
    refused = (found & ~_verdict(job, points)[0]).nonzero()[:, 0]
    for stretch in STRETCHES:
        if len(refused) == 0:
            break
        clean = job.images[refused]
        moved = (clean + stretch * (points[refused] - clean)).clamp_(0, 1)
        counts, _ = _verdict(job, moved, refused)
        points[refused[counts]] = moved[counts]
        refused = refused[~counts]
    return points


def _verdict(job: _Job, points: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which `points` of the examples `which` (all) count within the budget, and their distances."""
    which = torch.arange(len(job.images), device=job.images.device) if which is None else which
    most = torch.inf if job.eps is None else job.eps
    limit = torch.full((len(which),), most, dtype=torch.float64, device=points.device)
    return job.judge.judge(
        points,
        job.images[which],
        job.labels[which],
        job.target[which],
        limit,
        job.attack.norm,
        which,
    )


def _check_request(
    name: str, norm: str, eps: float | None, keep: str, nearest: bool, searching: bool
) -> None:
    """What is asked of the attack must fit its kind."""
    if keep not in ("last", "best_loss"):
        raise UserError(f"unknown keep {keep!r}", hint="last or best_loss")
    if searching and keep != "last":
        raise UserError(f"{name} returns the nearest verified images; it has no {keep} iterates")
    if eps is not None:
        check_eps(eps, norm)
    elif not nearest:
        raise UserError(f"{name} needs an eps")


def _check_classes(judge: Judge, images: Tensor, labels: Tensor, target: Tensor | None) -> None:
    classes = int(judge.logits(images[:1], torch.zeros_like(labels[:1])).shape[1])
    for what, numbers in (("labels", labels), ("target", target)):
        if numbers is not None and not bool(((numbers >= 0) & (numbers < classes)).all()):
            span = f"{int(numbers.min())} to {int(numbers.max())}"
            raise UserError(f"{judge.subject} gives {classes} logits, but {what} go from {span}")


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
    `broken` (N,) bool: counts by the verdict at eps (None: at any norm); `distances`: norm -> (N,)
    float64; `target` (N,) int64: the class that counts (None: any wrong one). `nearest`: the attack
    looked for the nearest images.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    index: Tensor
    broken: Tensor
    distances: dict[str, Tensor]
    nearest: bool
    eps: float | None
    norm: str
    attack: str
    subject: str
    dataset: str
    target: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """Share of the returned images that are classified correctly, however far they are."""
        return float((self.after == self.labels).double().mean())

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
            **({} if self.target is None else {"target": self.target}),
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
    """Adversarial images of one run of an attack, one for every example.

    `n` None: at most 100, -1: all; `eps` None: the middle of the published grid, for minimum-norm
    attacks no bound. Attacks with a budget attack misclassified clean images too, and `keep` is
    `last` or `best_loss`; minimum-norm attacks and ensembles return the nearest verified images.
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
    if eps is None and not question.minimum:
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
    adversarial, after = made.images, made.prediction
    if wanted is None:
        # An image that was misclassified as it is, and is not any more, stays as it is.
        mended = (before != chosen.labels) & (after == chosen.labels)
        adversarial = torch.where(per_row(mended, adversarial), chosen.images, adversarial)
        after = torch.where(mended, before, after)
    return Images(
        clean=chosen.images,
        adversarial=adversarial,
        labels=chosen.labels,
        before=before,
        after=after,
        index=chosen.index,
        broken=made.broken | (before != chosen.labels),
        distances={
            name: distance(adversarial, chosen.images, name) for name in ("linf", "l2", "l1", "l0")
        },
        nearest=question.minimum,
        eps=eps,
        norm=question.norm,
        attack=question.name,
        subject=target.name,
        dataset=chosen.info.name,
        target=wanted,
    )
