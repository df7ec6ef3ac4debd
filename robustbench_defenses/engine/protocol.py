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
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from .guides import Gallery

Want = Literal["logits", "gradient", "class_gradients"]


@dataclass
class Rows:
    """What is fixed while a row runs.

    `example` (B,) int64: position in the block; `images` (B, C, H, W) in [0, 1]: the clean images;
    `labels` (B,) int64; `eps` (B,) float32, pixel units (inf where there is no budget); `target`
    (B,) int64: the class that counts as success, or -1 for an untargeted row; `key` (B,) int32: the
    row's randomness (`core.rng`); `run` (B,) int64: its number among the example's runs; `rivals`
    (B, K - 1) int64: the wrong classes by falling clean logits; `donors` (B, C, H, W), for attacks
    that ask for it: the nearest image of the block that the subject puts into another class (into
    the target), the row's own image where there is none; for attacks that name `taps`: `features`
    (B, D), those of the clean images, and `gallery`, those of a pool of images where the engine was
    given one.
    """

    example: Tensor
    images: Tensor
    labels: Tensor
    eps: Tensor
    target: Tensor
    key: Tensor
    run: Tensor
    rivals: Tensor
    donors: Tensor | None = None
    features: Tensor | None = None
    gallery: Gallery | None = None


# A loss to be *increased*: (logits (B, K), rows) -> (B,). Named ones stand in `engine.losses`.
Loss = Callable[[Tensor, Rows], Tensor]


@dataclass
class Features:
    """A wish for intermediate features, beside the logits and from the same pass.

    `taps`: their names (none: the last one before the logits); `guide` (B, D): features to compare
    with, the taps' one after the other. The loss to be increased is then
    `share` * loss(logits) + `weight` * (sum over taps of the distance to the guide, as a share of
    the guide's own length; or 1 - cosine), `share` and `weight` (B,); weight < 0: towards it.
    """

    taps: tuple[str, ...] = ()
    guide: Tensor | None = None
    weight: Tensor | None = None
    share: Tensor | None = None
    distance: Literal["euclidean", "cosine"] = "euclidean"


@dataclass
class Query:
    """Points (B, C, H, W) and one wish at them. Logits always come back too.

    `loss`: a name of `engine.losses` or a callable; `logit_scale`: logits are multiplied by it
    before the loss (not before the verdict); `aim` (B,) int64: class the loss is directed at where
    that is not the verdict's target (-1: untargeted loss); `classes` (B, M) int64: whose logits'
    gradients are wanted by `class_gradients` (rows of -1: logits only); `against` (B,) int64: class
    whose logit is subtracted from each of them first; `bare` (B,) bool: rows that want logits only
    where the others want the loss and its gradient; `features`: wanted too, and part of the loss.
    """

    points: Tensor
    want: Want = "gradient"
    loss: str | Loss = "ce"
    logit_scale: float = 1.0
    aim: Tensor | None = None
    classes: Tensor | None = None
    against: Tensor | None = None
    bare: Tensor | None = None
    features: Features | None = None


@dataclass
class Answer:
    """`logits` (B, K) float32; `loss` (B,) and `gradient` (B, C, H, W) where they were wanted
    (0 in bare rows).

    `class_gradients` (B, M, C, H, W): the gradient of each of the query's classes' logits (0 where
    the class was -1); `features` (B, D) float32: those that were wanted, one tap after the other.
    Of a random subject all are means over its draws, and `scores` (B, K) is its answer by its own
    rule.
    """

    logits: Tensor
    loss: Tensor | None = None
    gradient: Tensor | None = None
    class_gradients: Tensor | None = None
    features: Tensor | None = None
    scores: Tensor | None = None

    @property
    def decided(self) -> Tensor:
        """What the subject's class is read from: (B, K)."""
        return self.logits if self.scores is None else self.scores


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
#   donors: ClassVar[bool] = True     rows come with `donors`, images of other classes
#   taps: tuple[str, ...]             rows come with `features` and `gallery` at these taps
#   score(state, rows, answer) -> (B,)    what is compared over time where it is not the loss asked
#   fine(state, rows) -> (B,) bool    rows that need float32 now
#   runs(classes) -> int              runs per example, where it depends on the number of classes
#   inside(state, rows) -> (B,) bool  rows whose asked points are meant to lie in the ball
#   travel(eps) -> float              the farthest the steps of a fixed-budget attack can go
#   claims(logits, rows) -> (B,) bool    minimum norm: asked points to claim, not all misclassified
#   settle(state, rows, refused) -> state    minimum norm: rows whose best claim was refused; they
#                                            go on where they are no longer finished


def taps_of(attack: Any) -> tuple[str, ...] | None:
    """The taps that an attack compares images at, None for one that asks for no features."""
    found: tuple[str, ...] | None = getattr(attack, "taps", None)
    return found
