"""One question to a subject: logits, features, losses and gradients, over draws where it is random.

The gradient of a random subject is that of an expectation (EOT; Athalye et al. 2018): of the mean
loss over its draws, or of the loss of mean logits or mean probabilities. Only the input asks for a
gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from ..core.draws import Randomness, mean_probabilities
from .guides import apart
from .losses import loss_of
from .protocol import Answer, Query, Rows
from .rows import scatter, take

# Images (B, ...), their rows and names of taps to logits (B, K) and features (B, D) of each tap.
See = Callable[[Tensor, Rows, tuple[str, ...] | None], tuple[Tensor, tuple[Tensor, ...]]]
Blame = Callable[[Rows], AbstractContextManager[None]]


def nobody(rows: Rows) -> AbstractContextManager[None]:
    """Exceptions stay as they are."""
    return contextlib.nullcontext()


def ask(
    see: See,
    query: Query,
    rows: Rows,
    randomness: Randomness | None = None,
    blame: Blame = nobody,
) -> Answer:
    """The answer to `query`; `blame` stands around backward passes.

    Rows that want no gradient cost no backward pass.
    """
    idle = _idle(query)
    if idle is not None and bool(idle.any()):
        if bool(idle.all()):
            return _blank(ask(see, _logits_only(query), rows, randomness, blame), query)
        parts: list[tuple[Tensor, Answer]] = []
        for flag in (False, True):
            index = (idle == flag).nonzero()[:, 0]
            part = ask(see, take(query, index), take(rows, index), randomness, blame)
            parts.append((index, part))
        return assembled(parts, len(query.points))
    points = query.points.detach()
    if query.want == "logits":
        with torch.no_grad():
            return _plain(see, query, rows, points, randomness)
    points.requires_grad_()
    if query.want == "class_gradients":
        return _class_gradients(see, query, rows, points, randomness, blame)
    return _gradient(see, query, rows, points, randomness, blame)


def passes(query: Query, randomness: Randomness | None) -> tuple[int, int]:
    """Forward and backward example-passes that the answer to `query` takes."""
    draws, backward = 1 if randomness is None else randomness.draws, 0
    if query.want == "gradient":
        backward = len(query.points) if query.bare is None else int((~query.bare).sum())
    elif query.want == "class_gradients" and query.classes is not None:
        backward = int((query.classes >= 0).sum())
    return draws * len(query.points), draws * backward


def together(query: Query, randomness: Randomness | None) -> int:
    """How many passes over one image are held in memory at once."""
    if randomness is None or query.want != "gradient" or randomness.eot == "loss_mean":
        return 1
    return randomness.draws


def assembled(parts: list[tuple[Tensor, Answer]], count: int) -> Answer:
    """One answer of `count` rows from the answers to parts of it."""

    def joined(name: str) -> Tensor | None:
        values = [(index, getattr(part, name)) for index, part in parts]
        return None if values[0][1] is None else scatter(values, count)

    logits = joined("logits")
    assert logits is not None
    names = ("loss", "gradient", "class_gradients", "features", "scores")
    return Answer(logits, *[joined(name) for name in names])


def _idle(query: Query) -> Tensor | None:
    """Rows (B,) bool that want logits only, None for a question that does not tell rows apart."""
    if query.want == "class_gradients":
        assert query.classes is not None
        return (query.classes < 0).all(1)
    return query.bare if query.want == "gradient" else None


def _logits_only(query: Query) -> Query:
    return replace(query, want="logits", bare=None, classes=None)


def _blank(answer: Answer, query: Query) -> Answer:
    """An answer without gradients in the shape of one with them."""
    points = query.points
    if query.want == "class_gradients":
        assert query.classes is not None
        shape = (*query.classes.shape, *points.shape[1:])
        return replace(answer, class_gradients=points.new_zeros(shape))
    loss = answer.logits.new_zeros(len(points))
    return replace(answer, loss=loss, gradient=torch.zeros_like(points))


def _plain(
    see: See, query: Query, rows: Rows, points: Tensor, randomness: Randomness | None
) -> Answer:
    taps = None if query.features is None else query.features.taps
    count = 1 if randomness is None else randomness.draws
    draws = [see(points, rows, taps) for _ in range(count)]
    return _answer(query, draws, randomness)


def _answer(
    query: Query,
    draws: list[tuple[Tensor, tuple[Tensor, ...]]],
    randomness: Randomness | None,
) -> Answer:
    """Logits, features and scores from the draws made."""
    features = None
    if query.features is not None:
        mean = [_mean([seen[i].detach() for _, seen in draws]) for i in range(len(draws[0][1]))]
        features = torch.cat(mean, 1)
    if randomness is None:
        return Answer(draws[0][0].detach(), features=features)
    logits = torch.stack([z.detach() for z, _ in draws])
    inner = mean_probabilities(logits) if randomness.eot == "prob_mean" else logits.mean(0)
    return Answer(inner, features=features, scores=randomness.scores(logits))


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def _gradient(
    see: See, query: Query, rows: Rows, points: Tensor, randomness: Randomness | None, blame: Blame
) -> Answer:
    taps = None if query.features is None else query.features.taps
    count = 1 if randomness is None else randomness.draws
    if randomness is not None and randomness.eot != "loss_mean":
        with torch.enable_grad():
            draws = [see(points, rows, taps) for _ in range(count)]
            logits = torch.stack([z for z, _ in draws])
            by_prob = randomness.eot == "prob_mean"
            inner = mean_probabilities(logits) if by_prob else logits.mean(0)
            features = tuple(_mean([seen[i] for _, seen in draws]) for i in range(len(draws[0][1])))
            loss = _loss(query, rows, inner, features)
        gradient = _slope(loss, points, blame(rows))
        return replace(_answer(query, draws, randomness), loss=loss.detach(), gradient=gradient)
    draws, losses, total = [], [], None
    for _ in range(count):
        with torch.enable_grad():
            logits, features = see(points, rows, taps)
            loss = _loss(query, rows, logits, features)
        slope = _slope(loss, points, blame(rows))
        total = slope if total is None else total + slope
        losses.append(loss.detach())
        draws.append((logits.detach(), tuple(one.detach() for one in features)))
    assert total is not None
    gradient = total if count == 1 else total / count
    return replace(_answer(query, draws, randomness), loss=_mean(losses), gradient=gradient)


def _loss(query: Query, rows: Rows, logits: Tensor, features: tuple[Tensor, ...]) -> Tensor:
    """The loss (B,) that is to be increased."""
    aimed = rows if query.aim is None else replace(rows, target=query.aim)
    scaled = logits if query.logit_scale == 1.0 else logits * query.logit_scale
    loss = loss_of(query.loss)(scaled, aimed)
    wish = query.features
    if wish is None or wish.guide is None:
        return loss
    assert wish.weight is not None
    guides = torch.split(wish.guide, [one.shape[1] for one in features], 1)
    far = sum(
        (apart(one, guide, wish.distance) for one, guide in zip(features, guides)),
        start=torch.zeros_like(loss),
    )
    share = torch.ones_like(loss) if wish.share is None else wish.share.to(loss)
    return share * loss + wish.weight.to(loss) * far


def _slope(loss: Tensor, points: Tensor, blame: AbstractContextManager[None]) -> Tensor:
    """The gradient of `loss` (B,) by `points`, finite; zero for a subject that has no graph."""
    gradient = None
    if loss.requires_grad:
        with torch.enable_grad(), blame:
            (gradient,) = torch.autograd.grad(loss.sum(), points, allow_unused=True)
    return torch.zeros_like(points) if gradient is None else finite(gradient)


def _class_gradients(
    see: See, query: Query, rows: Rows, points: Tensor, randomness: Randomness | None, blame: Blame
) -> Answer:
    taps = None if query.features is None else query.features.taps
    count = 1 if randomness is None else randomness.draws
    draws, total = [], None
    for _ in range(count):
        with torch.enable_grad():
            logits, features = see(points, rows, taps)
        with blame(rows):
            slopes = gradients_of_classes(logits, points, query)
        total = slopes if total is None else total + slopes
        draws.append((logits.detach(), tuple(one.detach() for one in features)))
    assert total is not None
    mean = total if count == 1 else total / count
    return replace(_answer(query, draws, randomness), class_gradients=mean)


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
    unwanted = (query.classes < 0).view(*query.classes.shape, *[1] * (points.dim() - 1))
    return finite(result.masked_fill_(unwanted, 0))


def finite(gradient: Tensor) -> Tensor:
    """`gradient` (B, ...) with 0 for NaN, and for infinite entries the largest finite size of their
    row: a root or a logarithm has no slope at 0, and one such pixel must not spoil the point."""
    if bool(torch.isfinite(gradient.sum())):
        return gradient
    rows = gradient.flatten(1)
    size = rows.abs().nan_to_num(nan=0.0, posinf=0.0).amax(1, keepdim=True)
    largest = torch.where(size > 0, size, 1.0)
    bounded = rows.nan_to_num(nan=0.0).clamp(-largest, largest)
    return bounded.view_as(gradient)
