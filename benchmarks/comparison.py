"""One task, ours and the peers' in turn: seconds, passes, and verdicts that are made here.

The verdict comes from a float32 pass over the images that a library returns, whatever the library
says of them; ours returns those that its engine verified, and has them judged again all the same.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peers import Peer, ours
from subjects import Subject
from tasks import EPS, GRID, Task, references
from torch import Tensor, nn

from robustbench_defenses.core.norms import distance, largest_allowed

Contest = Literal["speed", "strength"]

# More than this above a peer is told: half a point of accuracy, half a percent of the mean norm.
TOLERANCE = 0.005


@dataclass(frozen=True)
class Question:
    """A task on a subject: `grid` holds its budgets (none where the nearest point is wanted)."""

    name: str
    task: Task
    subject: Subject
    grid: tuple[float, ...]
    peer_batch: int

    @property
    def method(self) -> str:
        """What the peers call it."""
        return self.task.method or self.name

    @property
    def count(self) -> int:
        return len(self.subject.labels)


@dataclass(frozen=True)
class Made:
    """What a library made of a question: images (N, C, H, W) per budget, seconds, passes."""

    images: list[Tensor]
    cpu: float
    wall: float
    forward: int
    backward: int
    found: ours.Found | None = None


@dataclass(frozen=True)
class Verdict:
    """`broken` (E, N) bool at the budgets; `distance` (N,): of the nearest image that counts."""

    broken: Tensor
    distance: Tensor
    right: Tensor  # (N,) bool: the clean image is classified correctly


def question(
    name: str, task: Task, subject: Subject, eps: float | None, peer_batch: int
) -> Question:
    """The task `name` at `eps` (None: the data set's) on `subject`."""
    if task.minimum:
        grid: tuple[float, ...] = ()
    elif task.sweep:
        grid = GRID[subject.dataset]
    else:
        grid = (EPS[subject.dataset][task.norm] if eps is None else eps,)
    return Question(name, task, subject, grid, peer_batch)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


class _Wrapped(nn.Module):
    """The network as the peers get it: a module that counts, and shows no other attributes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.meter = ours.Meter(model)

    def forward(self, images: Tensor) -> Tensor:
        return self.meter(images)


def run_peer(asked: Question, peer: Peer, seed: int) -> Made:
    """The peer's images; its attack runs once per budget."""
    subject, task = asked.subject, asked.task
    attack = peer.attacks[asked.method]
    wrapped = _Wrapped(subject.model).eval()
    torch.manual_seed(seed)

    def work() -> list[Tensor]:
        return [
            attack(
                wrapped, subject.images, subject.labels,
                task.ask(subject.dataset, eps, asked.peer_batch, seed),
            )
            for eps in asked.grid or (math.nan,)
        ]  # fmt: skip

    images, cpu, wall = timed(work)
    for weight in subject.model.parameters():  # some peers leave gradients behind
        weight.grad = None
    meter = wrapped.meter
    return Made([part.detach() for part in images], cpu, wall, meter.forward, meter.backward)


def run_ours(asked: Question, seed: int) -> Made:
    """Our images: one verdict run over the whole grid."""
    subject, task = asked.subject, asked.task
    grid = asked.grid or (math.inf,)
    settings = task.ours_settings(subject.dataset, grid[0])
    enough = grid[0] if task.capped else 0.0
    found, cpu, wall = timed(
        lambda: ours.run(
            subject.model, subject.images, subject.labels, task.ours, settings, grid, enough,
            subject.precision, seed,
        )
    )  # fmt: skip
    return Made([found.images] * len(grid), cpu, wall, found.forward, found.backward, found)


def judge(asked: Question, made: Made) -> Verdict:
    """Which images count: misclassified, finite, in the box, and within the budget."""
    subject = asked.subject
    right = subject.predictions(subject.images) == subject.labels
    broken, nearest = [], torch.full((asked.count,), torch.inf, dtype=torch.float64)
    for eps, images in zip(asked.grid or (math.inf,), made.images):
        flat = images.flatten(1)
        counts = (flat >= 0).all(1) & (flat <= 1).all(1)  # false for NaN too
        length = distance(images, subject.images, asked.task.norm)
        counts &= length <= largest_allowed(torch.tensor(eps, dtype=torch.float64))
        counts &= subject.predictions(images) != subject.labels
        broken.append(~right | counts)
        nearest = torch.where(counts, torch.minimum(length, nearest), nearest)
    return Verdict(torch.stack(broken), torch.where(right, nearest, 0.0), right)


def summary(asked: Question, made: Made, verdict: Verdict) -> dict[str, Any]:
    """What one run cost and found, as plain numbers."""
    facts: dict[str, Any] = {
        "cpu": made.cpu,
        "wall": made.wall,
        "forward_per_image": made.forward / asked.count,
        "backward_per_image": made.backward / asked.count,
    }
    if asked.task.minimum:
        norms = verdict.distance[verdict.right & verdict.distance.isfinite()]
        facts["success"] = len(norms) / max(int(verdict.right.sum()), 1)
        facts["mean_norm"] = float(norms.mean()) if len(norms) else None
        facts["median_norm"] = float(norms.median()) if len(norms) else None
    else:
        facts["robust_accuracy"] = (~verdict.broken).double().mean(1).tolist()
    if made.found is not None:
        claimed = made.found.distance
        for eps, broken in zip(asked.grid or (math.inf,), verdict.broken):
            allowed = largest_allowed(torch.tensor(eps, dtype=torch.float64))
            lost = claimed.isfinite() & (claimed <= allowed) & ~broken
            facts.setdefault("unconfirmed", []).append(int(lost.sum()))
        facts["passes"] = {
            name: vars(getattr(made.found, name)) for name in ("coarse", "fine", "verdict")
        }
    return facts


def against(asked: Question, mine: Verdict, theirs: Verdict) -> dict[str, Any]:
    """Our verdicts beside a peer's on the same images. `excess`: by how much ours is the weaker
    attack, in robust accuracy, or in success or the share of the norm, whichever is more."""
    if asked.task.minimum:
        both = mine.right & mine.distance.isfinite() & theirs.distance.isfinite()
        both &= theirs.distance > 0
        ratio = mine.distance[both] / theirs.distance[both]
        mean = float(ratio.mean()) if len(ratio) else None
        found = [v.distance[v.right].isfinite().double().mean() for v in (mine, theirs)]
        excess = max(float(found[1] - found[0]), (mean or 1.0) - 1)
        median = theirs.distance[theirs.right].median()
        curve = [float((v.distance > largest_allowed(median)).double().mean())
                 for v in (mine, theirs)]  # fmt: skip
        return {
            "norm_ratio": mean,
            "norm_ratio_median": float(ratio.median()) if len(ratio) else None,
            "accuracy_at_peer_median": curve,
            "excess": excess,
        }
    excess = float((theirs.broken.double().mean(1) - mine.broken.double().mean(1)).amax())
    return {
        "only_ours_breaks": (mine.broken & ~theirs.broken).sum(1).tolist(),
        "only_peer_breaks": (theirs.broken & ~mine.broken).sum(1).tolist(),
        "excess": excess,
    }


def warm_up(asked: Question) -> None:
    """One pass in each form, so that no library pays for the kernels' first call."""
    images = asked.subject.images[: asked.peer_batch].clone().requires_grad_()
    logits = asked.subject.model(images)
    torch.autograd.grad(logits.sum(), images)
    small = asked.subject.first(64)
    settings: dict[str, object] = {"steps": 2}
    ours.run(
        small.model, small.images, small.labels, "pgd_linf", settings, (0.01,), 0.0,
        small.precision, 0,
    )  # fmt: skip


def compare(
    asked: Question, peers: list[Peer], repeats: int, contest: Contest = "speed"
) -> dict[str, Any]:
    """Ours and each peer in turn, `repeats` times: every run's numbers, and medians of ratios.

    For speed ours runs again beside every peer, and the bare passes are measured; for strength it
    runs once per repeat, and only the references of the task (`tasks.references`) beside it.
    """
    task, speed = asked.task, contest == "speed"
    able = [peer for peer in peers if asked.method in peer.attacks]
    if not speed:
        able = references(task, able)
    warm_up(asked)
    cost = ours.BareCost(*_plain(asked.subject)) if speed else None
    runs: list[dict[str, Any]] = []
    rows: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in able}
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        turns: list[Peer | None] = [*able] or [None]
        made: Made | None = None
        for peer in turns:
            if peer is not None and peer.name in failed:
                continue
            if made is None or speed:
                made = run_ours(asked, repeat)
                mine = judge(asked, made)
                facts = summary(asked, made, mine)
                if cost is not None and made.found is not None:
                    facts["bare"] = cost.seconds(made.found)
                    facts["over_bare"] = made.cpu / facts["bare"]
                runs.append(facts)
            if peer is None:
                continue
            try:
                other = run_peer(asked, peer, repeat)
            except Exception as error:  # whatever a peer dies of is its result
                failed[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            theirs = judge(asked, other)
            rows[peer.name].append({
                **summary(asked, other, theirs),
                "ratio_wall": other.wall / made.wall,
                "ratio_cpu": other.cpu / made.cpu,
                **against(asked, mine, theirs),
            })  # fmt: skip
    found = {
        name: {
            "runs": mine,
            **_medians(mine, ("cpu", "wall", "ratio_wall", "ratio_cpu")),
            "weaker": statistics.mean(run["excess"] for run in mine) > TOLERANCE + 1e-9,
        }
        for name, mine in rows.items()
        if mine
    }
    return {
        "task": asked.name,
        "attack": task.ours,
        "norm": task.norm,
        "n": asked.count,
        "grid": list(asked.grid),
        "settings": task.ours_settings(asked.subject.dataset, (asked.grid or (math.nan,))[0]),
        "ours": {"runs": runs, **_medians(runs, ("cpu", "wall", "bare", "over_bare"))},
        "peers": found,
        "failed": failed,
    }


def _plain(subject: Subject) -> tuple[nn.Module, Tensor, Tensor, str]:
    return subject.model, subject.images, subject.labels, subject.precision


def _medians(runs: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, float]:
    return {
        f"median_{key}": statistics.median(run[key] for run in runs)
        for key in keys
        if all(key in run for run in runs)
    }
