"""Ask and tell: what an attack says to the engine, and what it hears back.

An attack works on *rows*. A row is one running piece of work: one example at one budget, in one
restart, perhaps towards one target class. All tensors have the row as first dimension, and every
counter, step size and schedule position is per row, so one batch mixes budgets, restarts, targets
and ages. The engine owns `Rows`; the attack owns its state, a dataclass of tensors. An attack makes
no model call and loops over no examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

Want = Literal["logits", "gradient", "class_gradients"]


@dataclass
class Rows:
    """What is fixed while a row runs.

    `example` (B,) int64: position in the block; `images` (B, C, H, W) in [0, 1]: the clean images;
    `labels` (B,) int64; `eps` (B,) float32, pixel units (inf where there is no budget); `target`
    (B,) int64: the class that counts as success, or -1 for an untargeted row; `key` (B,) int32: the
    row's randomness (`core.rng`); `run` (B,) int64: its number among the example's runs; `rivals`
    (B, K - 1) int64: the wrong classes by falling clean logits.
    """

    example: Tensor
    images: Tensor
    labels: Tensor
    eps: Tensor
    target: Tensor
    key: Tensor
    run: Tensor
    rivals: Tensor


# A loss to be *increased*: (logits (B, K), rows) -> (B,). Named ones stand in `engine.losses`.
Loss = Callable[[Tensor, Rows], Tensor]


@dataclass
class Query:
    """Points (B, C, H, W) and one wish at them. Logits always come back too.

    `loss`: a name of `engine.losses` or a callable; `logit_scale`: logits are multiplied by it
    before the loss (not before the verdict); `aim` (B,) int64: class the loss is directed at where
    that is not the verdict's target (-1: untargeted loss); `classes` (B, M) int64: whose logits'
    gradients are wanted by `class_gradients` (rows of -1: logits only); `against` (B,) int64: class
    whose logit is subtracted from each of them first.
    """

    points: Tensor
    want: Want = "gradient"
    loss: str | Loss = "ce"
    logit_scale: float = 1.0
    aim: Tensor | None = None
    classes: Tensor | None = None
    against: Tensor | None = None


@dataclass
class Answer:
    """`logits` (B, K) float32; `loss` (B,) and `gradient` (B, C, H, W) where they were wanted.

    `class_gradients` (B, M, C, H, W): the gradient of each of the query's classes' logits (0 where
    the class was -1).
    """

    logits: Tensor
    loss: Tensor | None = None
    gradient: Tensor | None = None
    class_gradients: Tensor | None = None


class Attack(Protocol):
    """What the engine needs of an attack; parameters are the fields of its frozen dataclass."""

    @property
    def norm(self) -> str:
        """The norm of the budget: linf, l2 or l1."""

    @property
    def restarts(self) -> int:
        """Independent runs per example and budget (restarts, or targets tried one by one)."""

    def start(self, rows: Rows) -> Any:
        """The state of fresh rows."""

    def ask(self, state: Any, rows: Rows) -> Query:
        """What the rows want to know next."""

    def tell(self, state: Any, rows: Rows, answer: Answer) -> Any:
        """The state after the answer."""

    def finished(self, state: Any, rows: Rows) -> Tensor:
        """Rows (B,) bool that need no further answer."""

    def last(self, state: Any) -> Tensor:
        """The points (B, C, H, W) made by the last update; finished rows have them judged too."""

    def passes(self, classes: int) -> tuple[int, int]:
        """Declared budget of one run: most forward and backward passes per example."""


# Optional methods of an attack, asked for by name where they exist:
#   minimum: ClassVar[bool] = True    searches the nearest adversarial point; no budget is given
#   fine(state, rows) -> (B,) bool    rows that need float32 now
#   runs(classes) -> int              runs per example, where it depends on the number of classes
#   inside(state, rows) -> (B,) bool  rows whose asked points are meant to lie in the ball
#   travel(eps) -> float              the farthest the steps of a fixed-budget attack can go
#   claims(logits, rows) -> (B,) bool    minimum norm: asked points to claim, not all misclassified
#   settle(state, rows, refused) -> state    minimum norm: rows whose best claim was refused; they
#                                            go on where they are no longer finished
