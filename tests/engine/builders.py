"""Scripted attacks, subjects that misbehave on purpose, and rows, for tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_defenses.core import rng
from robustbench_defenses.core.norms import per_row
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.protocol import Answer, Query, Rows
from robustbench_defenses.engine.search import Block, Outcome, Search
from robustbench_defenses.engine.twin import Twin


def rows(
    images: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    target: Tensor | None = None,
    key: Tensor | None = None,
) -> Rows:
    """Rows for `images` (N, ...) as an attack sees them; `eps` a number or (N,)."""
    count = len(images)
    example = torch.arange(count)
    return Rows(
        example=example,
        images=images,
        labels=labels,
        eps=torch.as_tensor(eps, dtype=images.dtype).expand(count).contiguous(),
        target=torch.full_like(labels, -1) if target is None else target,
        key=rng.run_keys(0, "test", example) if key is None else key,
        run=torch.zeros_like(example),
        rivals=labels.new_zeros((count, 0)),
    )


@dataclass
class WalkState:
    points: Tensor
    done: Tensor


@dataclass(frozen=True)
class Walk:
    """Brightens all pixels by eps / steps per step, whatever it hears; run r of `directions` goes
    that way (-1: darker). Step k of an image of mean m has mean m + eps k / steps."""

    steps: int = 4
    directions: tuple[int, ...] = (1,)
    want: str = "gradient"

    norm: ClassVar[str] = "linf"

    @property
    def restarts(self) -> int:
        return len(self.directions)

    def start(self, rows: Rows) -> WalkState:
        return WalkState(rows.images.clone(), torch.zeros_like(rows.labels))

    def ask(self, state: WalkState, rows: Rows) -> Query:
        return Query(state.points, self.want)  # type: ignore[arg-type]

    def tell(self, state: WalkState, rows: Rows, answer: Answer) -> WalkState:
        way = torch.tensor(self.directions)[rows.run].to(rows.eps)
        done = state.done + 1
        moved = rows.images + per_row(way * rows.eps * done / self.steps, rows.images)
        return replace(state, points=moved.clamp(0, 1), done=done)

    def finished(self, state: WalkState, rows: Rows) -> Tensor:
        return state.done >= self.steps

    def last(self, state: WalkState) -> Tensor:
        return state.points

    def passes(self, classes: int) -> tuple[int, int]:
        return self.steps, self.steps


class Bands(nn.Module):
    """The class is the band in which the mean pixel lies: class k between edges k - 1 and k.

    Logit k is minus the distance to the middle of band k: differentiable, exact at the edges of
    bands of equal width.
    """

    def __init__(self, *middles: float) -> None:
        super().__init__()
        self.middles = torch.tensor(middles, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).double().mean(1)
        return -(mean[:, None] - self.middles).abs()


def grey(*means: float) -> Tensor:
    """One constant image (1, 2, 2) per mean, in float64."""
    return torch.tensor(means, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


@dataclass
class Recorder:
    """A subject that keeps what it was asked."""

    model: Logits
    asked: list[Tensor] = field(default_factory=list)

    def __call__(self, images: Tensor) -> Tensor:
        self.asked.append(images.detach().clone())
        return self.model(images)

    @property
    def sizes(self) -> list[int]:
        return [len(images) for images in self.asked]


def limited(model: Logits, most: int, error: Callable[[], Exception]) -> Logits:
    """`model`, out of memory above `most` images."""

    def call(images: Tensor) -> Tensor:
        if len(images) > most:
            raise error()
        return model(images)

    return call


def cuda_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


def cpu_memory() -> Exception:
    return RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to")


def plain(call: Logits) -> Twin:
    """A twin that is the subject itself."""
    return Twin(call, call, autocast=False)


def search(
    attack: Any,
    twin: Logits | Twin,
    images: Tensor,
    labels: Tensor,
    grid: tuple[float, ...],
    *,
    deployed: Logits | None = None,
    **options: Any,
) -> Outcome:
    """A verdict run of a fixed-budget attack; `twin` judges too unless `deployed` is given."""
    block = Block(
        images=images,
        labels=labels,
        target=options.pop("target", torch.full_like(labels, -1)),
        numbers=options.pop("numbers", torch.arange(len(labels))),
        grid=grid,
        sweep=options.pop("sweep", "envelope"),
    )
    if not isinstance(twin, Twin):
        twin = plain(twin)
    judge = twin.fine if deployed is None else deployed
    return Search(attack=attack, twin=twin, deployed=judge, block=block, **options).run()
