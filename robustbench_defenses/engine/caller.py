"""Every model call of a search: gradients, counting, splitting, memory, broken answers.

Weight gradients are never computed: the twin is frozen and only the input asks for a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.errors import UserError
from .losses import loss_of
from .protocol import Answer, Query, Rows
from .rows import scatter, take
from .twin import Twin


@dataclass
class Cost:
    """Example-passes made: one image through the network once, forward or backward."""

    forward: int = 0
    backward: int = 0


@dataclass
class Caller:
    """Asks the twin on behalf of rows; `queries` (N,) int64 counts forward passes per example."""

    twin: Twin
    subject: str
    numbers: Tensor  # (N,) the examples' numbers in the data set, for messages
    queries: Tensor
    batch_size: int
    cost: Cost = field(default_factory=Cost)

    def answer(self, query: Query, rows: Rows, fine: Tensor | None) -> Answer:
        """The answer to `query`; rows where `fine` (B,) is true are asked in float32."""
        self.queries += torch.bincount(rows.example, minlength=len(self.queries))
        count = len(query.points)
        self.cost.forward += count
        if query.want == "gradient":
            self.cost.backward += count
        elif query.classes is not None:
            self.cost.backward += query.classes.numel()
        if fine is None or not bool(fine.any()):
            return self._whole(query, rows, fine=False)
        if bool(fine.all()):
            return self._whole(query, rows, fine=True)
        parts: list[tuple[Tensor, Answer]] = []
        for flag in (False, True):
            index = (fine == flag).nonzero()[:, 0]
            parts.append((index, self._whole(take(query, index), take(rows, index), fine=flag)))
        return _assembled(parts, count)

    def _whole(self, query: Query, rows: Rows, fine: bool) -> Answer:
        """One call; halves the batch, and remembers, when the memory does not suffice."""
        size = min(len(query.points), self.batch_size)
        while True:
            try:
                if size >= len(query.points):
                    return self._call(query, rows, fine)
                everyone = torch.arange(len(query.points), device=query.points.device)
                parts = []
                for start in range(0, len(everyone), size):
                    chunk = everyone[start : start + size]
                    part = self._call(take(query, chunk), take(rows, chunk), fine)
                    parts.append((chunk, part))
                return _assembled(parts, len(everyone))
            except (torch.OutOfMemoryError, MemoryError):
                if size == 1:
                    raise
                size = self.batch_size = max(1, size // 2)

    def _call(self, query: Query, rows: Rows, fine: bool) -> Answer:
        if query.want == "logits":
            with torch.no_grad():
                logits = self.twin(query.points, fine)
            self._check(logits, rows)
            return Answer(logits)
        points = query.points.detach().requires_grad_()
        if query.want == "class_gradients":
            return self._class_gradients(query, points, rows, fine)
        aimed = rows if query.aim is None else replace(rows, target=query.aim)
        with torch.enable_grad():
            logits = self.twin(points, fine)
            scaled = logits if query.logit_scale == 1.0 else logits * query.logit_scale
            loss = loss_of(query.loss)(scaled, aimed)
            # A subject that does not depend on its input has no graph: its gradient is zero.
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss.sum(), points, allow_unused=True)
            else:
                gradient = None
        if gradient is None:
            gradient = torch.zeros_like(query.points)
        logits = logits.detach()
        self._check(logits, rows)
        return Answer(logits, loss.detach(), gradient)

    def _class_gradients(self, query: Query, points: Tensor, rows: Rows, fine: bool) -> Answer:
        """One forward pass and one backward pass per wanted class."""
        assert query.classes is not None
        wanted = query.classes.shape[1]
        result = points.new_zeros((len(points), wanted, *points.shape[1:]))
        with torch.enable_grad():
            logits = self.twin(points, fine)
            chosen = logits.gather(1, query.classes)  # (B, M)
            if chosen.requires_grad:
                for m in range(wanted):
                    (gradient,) = torch.autograd.grad(
                        chosen[:, m].sum(), points, retain_graph=m + 1 < wanted, allow_unused=True
                    )
                    if gradient is not None:
                        result[:, m] = gradient
        logits = logits.detach()
        self._check(logits, rows)
        return Answer(logits, class_gradients=result)

    def _check(self, logits: Tensor, rows: Rows) -> None:
        check_logits(logits, self.numbers[rows.example], self.subject)


def _assembled(parts: list[tuple[Tensor, Answer]], count: int) -> Answer:
    """One answer of `count` rows from the answers to parts of it."""

    def joined(name: str) -> Tensor | None:
        values = [(index, getattr(part, name)) for index, part in parts]
        return None if values[0][1] is None else scatter(values, count)

    logits = joined("logits")
    assert logits is not None
    return Answer(logits, joined("loss"), joined("gradient"), joined("class_gradients"))


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
