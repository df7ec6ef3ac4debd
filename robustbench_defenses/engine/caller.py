"""Every model call of a search: gradients, counting, splitting, memory, broken answers.

Weight gradients are never computed: the twin is frozen and only the input asks for a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.errors import Interrupted, UserError
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
            self.cost.backward += int((query.classes >= 0).sum())
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
            except Exception as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size = self.batch_size = max(1, size // 2)

    def _call(self, query: Query, rows: Rows, fine: bool) -> Answer:
        if query.want == "logits":
            with torch.no_grad():
                return Answer(self._logits(query.points, rows, fine))
        points = query.points.detach().requires_grad_()
        if query.want == "class_gradients":
            return self._class_gradients(query, points, rows, fine)
        aimed = rows if query.aim is None else replace(rows, target=query.aim)
        with torch.enable_grad():
            logits = self._logits(points, rows, fine)
            scaled = logits if query.logit_scale == 1.0 else logits * query.logit_scale
            loss = loss_of(query.loss)(scaled, aimed)
            # A subject that does not depend on its input has no graph: its gradient is zero.
            gradient = None
            if loss.requires_grad:
                with blaming(self.subject, self.numbers[rows.example]):
                    (gradient,) = torch.autograd.grad(loss.sum(), points, allow_unused=True)
        if gradient is None:
            gradient = torch.zeros_like(query.points)
        return Answer(logits.detach(), loss.detach(), gradient)

    def _class_gradients(self, query: Query, points: Tensor, rows: Rows, fine: bool) -> Answer:
        """One forward pass and one backward pass per wanted class; rows of -1 only the forward."""
        assert query.classes is not None
        bare = (query.classes < 0).all(1)
        if bool(bare.all()):
            plain = self._call(replace(query, want="logits"), rows, fine)
            blank = points.new_zeros((*query.classes.shape, *points.shape[1:]))
            return replace(plain, class_gradients=blank)
        if bool(bare.any()):
            parts: list[tuple[Tensor, Answer]] = []
            for flag in (False, True):
                index = (bare == flag).nonzero()[:, 0]
                parts.append((index, self._call(take(query, index), take(rows, index), fine)))
            return _assembled(parts, len(points))
        with torch.enable_grad():
            logits = self._logits(points, rows, fine)
        with blaming(self.subject, self.numbers[rows.example]):
            result = gradients_of_classes(logits, points, query)
        return Answer(logits.detach(), class_gradients=result)

    def _logits(self, points: Tensor, rows: Rows, fine: bool) -> Tensor:
        numbers = self.numbers[rows.example]
        with blaming(self.subject, numbers):
            logits = self.twin(points, fine)
        check_tensor(logits, self.subject)
        check_logits(logits.detach(), numbers, self.subject)
        return logits


def gradients_of_classes(logits: Tensor, points: Tensor, query: Query) -> Tensor:
    """Gradients (B, M, C, H, W) by `points` of the logits (B, K) that `query.classes` wants."""
    assert query.classes is not None
    wanted = query.classes.shape[1]
    result = torch.zeros((len(points), wanted, *points.shape[1:])).to(points)
    with torch.enable_grad():
        chosen = logits.gather(1, query.classes.clamp_min(0))  # (B, M)
        if query.against is not None:
            chosen = chosen - logits.gather(1, query.against[:, None])
        if not chosen.requires_grad:
            return result
        for m in range(wanted):
            (gradient,) = torch.autograd.grad(
                chosen[:, m].sum(), points, retain_graph=m + 1 < wanted, allow_unused=True
            )
            if gradient is not None:
                result[:, m] = gradient
    return result.masked_fill_((query.classes < 0).view(*query.classes.shape, 1, 1, 1), 0)


def _assembled(parts: list[tuple[Tensor, Answer]], count: int) -> Answer:
    """One answer of `count` rows from the answers to parts of it."""

    def joined(name: str) -> Tensor | None:
        values = [(index, getattr(part, name)) for index, part in parts]
        return None if values[0][1] is None else scatter(values, count)

    logits = joined("logits")
    assert logits is not None
    return Answer(logits, joined("loss"), joined("gradient"), joined("class_gradients"))


def out_of_memory(error: Exception) -> bool:
    """True where a smaller batch may help; the CPU's allocator raises a plain `RuntimeError`."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


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
