"""Image runs: an attack that must return images, for every example, broken or not.

Used for inner maximisation in training, for transfer and for pictures. Nobody leaves early and
nothing is judged on the way: what comes back is the last iterate, or the one of highest loss. An
image that merely was the *first* to be misclassified is a much weaker source for all three
(first-broken images hardly transfer).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.norms import distance, per_row
from ..core.view import Logits, View
from .caller import gradients_of_classes
from .losses import loss_of, misclassified, rivals
from .protocol import Answer, Attack, Query, Rows
from .rows import take
from .search import runs_of

Keep = Literal["last", "best_loss"]


@contextlib.contextmanager
def frozen(*subjects: object) -> Iterator[None]:
    """Weights ask for no gradient inside; each gets its own flag back."""
    flags = [
        (weight, weight.requires_grad)
        for subject in subjects
        if isinstance(subject, nn.Module)
        for weight in subject.parameters()
    ]
    try:
        for weight, _ in flags:
            weight.requires_grad_(False)
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def craft(
    model: Logits | View,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    eps: float | Tensor,
    *,
    key: Tensor | None = None,
    target: Tensor | None = None,
    keep: Keep = "last",
    autocast: bool = False,
) -> Tensor:
    """Adversarial images (N, C, H, W) of one run of `attack` on all of `images`, as one batch;
    of a minimum-norm attack the nearest ones of all its runs.

    `images` in [0, 1]; `labels`, `target` (N,) int64 (target -1 or None: untargeted); `eps`: a
    number or (N,), pixel units; `key` (N,) int32: the rows' randomness (default: seed 0 and the
    position); `autocast`: ask the model under bf16. The model is asked in the mode it is in; its
    weights get no gradients and keep their flags.
    """
    call = model.logits if isinstance(model, View) else model
    rows = _rows(images, labels, eps, key, target)
    if getattr(attack, "ranks_classes", False):
        with torch.no_grad():
            rows.rivals = rivals(call(images), labels)
    best: Tensor | None = None
    best_loss: Tensor | None = None
    with frozen(call):
        if getattr(attack, "minimum", False):
            return _nearest(call, attack, rows, autocast)
        state = attack.start(rows)
        while not bool(attack.finished(state, rows).all()):
            query = attack.ask(state, rows)
            if keep == "best_loss":
                asked = query.points.clone()
            answer = _answer(call, query, rows, autocast)
            if keep == "best_loss":
                best, best_loss = _better(
                    best, best_loss, asked, _scored(attack, state, rows, answer)
                )
            state = attack.tell(state, rows, answer)
        points: Tensor = attack.last(state)
        if keep == "best_loss":
            final = _answer(call, replace(query, points=points), rows, autocast)
            best, _ = _better(best, best_loss, points, final.loss)
            points = best
    return points.detach()


def _nearest(call: Any, attack: Attack, rows: Rows, autocast: bool) -> Tensor:
    """The nearest misclassified point that a minimum-norm attack asks about in any of its runs;
    where there is none, the clean image."""
    points, everything = rows.images.clone(), rows
    shortest = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    claims = getattr(attack, "claims", None)

    def keep(asked: Tensor, logits: Tensor, rows: Rows) -> None:
        wrong = misclassified(logits, rows.labels, rows.target)
        if claims is not None:
            wrong = claims(logits, rows)
        length = distance(asked, rows.images, attack.norm)
        nearer = wrong & (length < shortest[rows.example])
        chosen = rows.example[nearer]
        points[chosen] = asked[nearer]
        shortest[chosen] = length[nearer]

    for run in range(runs_of(attack, rows.rivals.shape[1] + 1)):
        rows = everything if run == 0 else _again(everything, run)
        state = attack.start(rows)
        while len(rows.example):
            query = attack.ask(state, rows)
            asked = query.points.clone()
            answer = _answer(call, query, rows, autocast)
            keep(asked, answer.logits, rows)
            state = attack.tell(state, rows, answer)
            done = attack.finished(state, rows)
            ending = done.nonzero()[:, 0]
            if len(ending):
                final, ended = attack.last(state)[ending], take(rows, ending)
                keep(final, _answer(call, Query(final, "logits"), ended, autocast).logits, ended)
                staying = (~done).nonzero()[:, 0]
                rows, state = take(rows, staying), take(state, staying)
    return points.detach()


def _again(rows: Rows, run: int) -> Rows:
    """The same rows in a later run, with randomness of its own."""
    return replace(rows, run=torch.full_like(rows.run, run), key=rng.fold(rows.key, run))


def _rows(
    images: Tensor, labels: Tensor, eps: float | Tensor, key: Tensor | None, target: Tensor | None
) -> Rows:
    count = len(images)
    example = torch.arange(count, device=images.device)
    budget = torch.as_tensor(eps, dtype=images.dtype, device=images.device).expand(count)
    return Rows(
        example=example,
        images=images,
        labels=labels,
        eps=budget.contiguous(),
        target=torch.full_like(labels, -1) if target is None else target,
        key=rng.run_keys(0, "craft", example) if key is None else key,
        run=torch.zeros_like(example),
        rivals=labels.new_zeros((count, 0)),  # filled in for attacks that rank classes
    )


def _answer(call: Any, query: Query, rows: Rows, autocast: bool) -> Answer:
    points = query.points.detach().requires_grad_()
    with (
        torch.set_grad_enabled(query.want != "logits"),
        torch.autocast(points.device.type, dtype=torch.bfloat16, enabled=autocast),
    ):
        logits = call(points)
    with torch.enable_grad():
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if query.want == "class_gradients":
            slopes = gradients_of_classes(logits, points, query)
            return Answer(logits.detach(), class_gradients=slopes)
        aimed = rows if query.aim is None else replace(rows, target=query.aim)
        loss = loss_of(query.loss)(logits * query.logit_scale, aimed)
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss.sum(), points, allow_unused=True)
    if gradient is None:
        gradient = torch.zeros_like(query.points)
    return Answer(logits.detach(), loss.detach(), gradient)


def _scored(attack: Attack, state: Any, rows: Rows, answer: Answer) -> Tensor | None:
    """The losses (B,), minus infinity where an attack looks outside the ball on purpose."""
    inside = getattr(attack, "inside", None)
    if inside is None or answer.loss is None:
        return answer.loss
    return answer.loss.masked_fill(~inside(state, rows), -torch.inf)


def _better(
    best: Tensor | None, best_loss: Tensor | None, points: Tensor, loss: Tensor | None
) -> tuple[Tensor, Tensor]:
    assert loss is not None
    if best is None or best_loss is None:
        return points.clone(), loss
    higher = loss > best_loss
    return torch.where(per_row(higher, points), points, best), torch.maximum(loss, best_loss)
