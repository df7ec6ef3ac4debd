"""Every model call of a search: counting, seeding, splitting, memory, broken answers.

Weight gradients are never computed: the twin is frozen and only the input asks for a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.draws import seeded
from ..core.errors import Interrupted, UserError
from ..core.rng import name_key
from .ask import ask, assembled, passes, together
from .memory import in_parts, out_of_memory
from .protocol import Answer, Query, Rows
from .rows import take
from .twin import Twin


@dataclass
class Cost:
    """Example-passes made: one image through the network once, forward or backward."""

    forward: int = 0
    backward: int = 0


@dataclass
class Caller:
    """Asks the twin on behalf of rows; `queries` (N,) int64 counts forward passes per example.

    `seed`: of the draws of a random subject, which are fresh for every question.
    """

    twin: Twin
    subject: str
    numbers: Tensor  # (N,) the examples' numbers in the data set, for messages
    queries: Tensor
    batch_size: int
    cost: Cost = field(default_factory=Cost)
    seed: object = 0

    def answer(self, query: Query, rows: Rows, fine: Tensor | None) -> Answer:
        """The answer to `query`; rows where `fine` (B,) is true are asked in float32."""
        count = len(query.points)
        forward, backward = passes(query, self.twin.randomness)
        asked = torch.bincount(rows.example, minlength=len(self.queries))
        self.queries += asked * (forward // max(1, count))
        self.cost.forward += forward
        self.cost.backward += backward
        if fine is None or not bool(fine.any()):
            return self._whole(query, rows, fine=False)
        if bool(fine.all()):
            return self._whole(query, rows, fine=True)
        parts: list[tuple[Tensor, Answer]] = []
        for flag in (False, True):
            index = (fine == flag).nonzero()[:, 0]
            parts.append((index, self._whole(take(query, index), take(rows, index), fine=flag)))
        return assembled(parts, count)

    def _whole(self, query: Query, rows: Rows, fine: bool) -> Answer:
        """One call; halves the batch, and remembers, when the memory does not suffice."""
        held = together(query, self.twin.randomness)

        def call(query: Query, rows: Rows, start: int) -> Answer:
            if self.twin.randomness is None:
                return self._call(query, rows, fine)
            # What tells this question from all others: the passes made so far.
            place = (self.seed, int(self.numbers[0]), self.cost.forward, fine, start)
            with seeded(name_key("draws", *place), query.points.device):
                return self._call(query, rows, fine)

        answer, size = in_parts(call, query, rows, max(1, self.batch_size // held))
        if size is not None:
            self.batch_size = size * held
        return answer

    def _call(self, query: Query, rows: Rows, fine: bool) -> Answer:
        def blame(rows: Rows) -> AbstractContextManager[None]:
            return blaming(self.subject, self.numbers[rows.example])

        def see(
            points: Tensor, rows: Rows, taps: tuple[str, ...] | None
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            with blame(rows):
                logits, features = self.twin.see(points, fine, taps)
            check_tensor(logits, self.subject)
            check_logits(logits.detach(), self.numbers[rows.example], self.subject)
            return logits, features

        return ask(see, query, rows, self.twin.randomness, blame)


@contextlib.contextmanager
def blaming(subject: str, numbers: Tensor) -> Iterator[None]:
    """Around a call of a subject on the examples `numbers` (B,): faults become a `UserError`."""
    try:
        yield
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"{subject} raises {type(error).__name__} for a batch that begins "
            f"with test image {int(numbers[0])}: {said}"
        ) from error


def check_tensor(logits: object, subject: str) -> None:
    """A `UserError` where a subject returns something else than a tensor."""
    if not isinstance(logits, Tensor):
        raise UserError(f"{subject} returns {type(logits).__name__}, not a tensor of logits")


def check_logits(logits: Tensor, numbers: Tensor, subject: str) -> None:
    """A `UserError` that names the example where `logits` (B, K) are of wrong shape or not finite.

    Infinite logits are allowed for classes that a subject rules out (-inf), NaN and +inf never.
    """
    if logits.dim() != 2 or len(logits) != len(numbers):
        raise UserError(
            f"{subject} gives logits of shape {tuple(logits.shape)} for {len(numbers)} images",
            hint="a subject maps images (N, C, H, W) to logits (N, K)",
        )
    # One reduction for the usual case: NaN and +inf both survive the sum of the row maxima.
    if bool(torch.isfinite(logits.sum())):
        return
    bad = (torch.isnan(logits) | torch.isposinf(logits)).any(1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        what = "NaN" if bool(torch.isnan(logits[first]).any()) else "infinite logits"
        raise UserError(f"{subject} gives {what} for test image {int(numbers[first])}")
