"""Image runs: an attack that must return images, for every example, broken or not.

Used for inner maximisation in training, for transfer and for pictures. Nobody leaves early and
nothing is judged on the way: what comes back is the last iterate, or the one of highest loss. An
image that merely was the *first* to be misclassified is a much weaker source for all three
(first-broken images hardly transfer).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core import rng
from ..core.draws import Randomness, randomness_of, seeded
from ..core.norms import distance, per_row
from ..core.view import Logits, View, read
from .ask import ask, passes, together
from .donors import nearest_donors
from .guides import Pool, gallery_of, plain_rows
from .losses import misclassified, rivals
from .memory import in_parts
from .protocol import Answer, Attack, Features, Query, Rows, taps_of
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
    pool: Pool | None = None,
) -> Tensor:
    """Adversarial images (N, C, H, W) of one run of `attack` on all of `images`, as one batch;
    of a minimum-norm attack the nearest ones of all its runs.

    `images` in [0, 1]; `labels`, `target` (N,) int64 (target -1 or None: untargeted); `eps`: a
    number or (N,), pixel units; `key` (N,) int32: the rows' randomness (default: seed 0 and the
    position); `autocast`: ask the model under bf16; `pool`: images that feature attacks take their
    guides from. The model is asked in the mode it is in; its weights get no gradients and keep
    their flags. Where the memory does not suffice it is asked in parts.
    """
    call = model.logits if isinstance(model, View) else model
    randomness = model.randomness if isinstance(model, View) else randomness_of(model)
    rows = _rows(images, labels, eps, key, target)
    asked = _Asked(call, autocast, randomness, len(images))
    with frozen(call):
        _furnish(rows, attack, asked, pool)
        if getattr(attack, "minimum", False):
            return _nearest(asked, attack, rows)
        return _iterate(asked, attack, rows, keep)


@dataclass
class _Asked:
    """The model and how it is asked; `size`: images that it can be asked about at once."""

    call: Logits
    autocast: bool
    randomness: Randomness | None
    size: int
    made: int = 0  # passes made so far: they tell the questions to a random model apart

    def answer(self, query: Query, rows: Rows) -> Answer:
        held = together(query, self.randomness)

        def part(query: Query, rows: Rows, start: int) -> Answer:
            if self.randomness is None:
                return ask(self._see, query, rows)
            place = (int(rows.key[0]), self.made, start)
            with seeded(rng.name_key("craft", *place), query.points.device):
                return ask(self._see, query, rows, self.randomness)

        answer, size = in_parts(part, query, rows, max(1, self.size // held))
        if size is not None:
            self.size = size * held
        self.made += passes(query, self.randomness)[0]
        return answer

    def _see(
        self, points: Tensor, rows: Rows, taps: tuple[str, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast(points.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            logits, features = read(self.call, points, taps)
        wide = [one if one.dtype == torch.float64 else one.float() for one in (logits, *features)]
        return wide[0], tuple(wide[1:])


def _furnish(rows: Rows, attack: Attack, asked: _Asked, pool: Pool | None) -> None:
    """Give the rows what the attack wants to know of their clean images and of others."""
    taps = taps_of(attack)
    ranks, starts = getattr(attack, "ranks_classes", False), getattr(attack, "donors", False)
    if not ranks and not starts and taps is None:
        return
    wish = None if taps is None else Features(taps)
    clean = asked.answer(Query(rows.images, "logits", features=wish), rows)
    rows.rivals = rivals(clean.decided, rows.labels)
    if starts:
        place = nearest_donors(rows.images, clean.decided.argmax(1), rows.labels, rows.target)
        rows.donors = rows.images[place]
    rows.features = clean.features
    if wish is not None and pool is not None:
        others = plain_rows(pool.images, pool.labels)
        seen = asked.answer(Query(pool.images, "logits", features=wish), others)
        rows.gallery = gallery_of(pool, seen)


def _iterate(asked: _Asked, attack: Attack, rows: Rows, keep: Keep) -> Tensor:
    """The last iterate, or the one of highest loss."""
    best: Tensor | None = None
    best_loss: Tensor | None = None
    state = attack.start(rows)
    while not bool(attack.finished(state, rows).all()):
        query = attack.ask(state, rows)
        if keep == "best_loss":
            at = query.points.clone()
        answer = asked.answer(query, rows)
        if keep == "best_loss":
            best, best_loss = _better(best, best_loss, at, _scored(attack, state, rows, answer))
        state = attack.tell(state, rows, answer)
    points: Tensor = attack.last(state)
    if keep == "best_loss":
        final = asked.answer(replace(query, points=points), rows)
        best, _ = _better(best, best_loss, points, _loss(attack, state, rows, final))
        points = best
    return points.detach()


def _nearest(asked: _Asked, attack: Attack, rows: Rows) -> Tensor:
    """The nearest misclassified point that a minimum-norm attack asks about in any of its runs;
    where there is none, the clean image."""
    points, everything = rows.images.clone(), rows
    shortest = torch.full((len(points),), torch.inf, dtype=torch.float64, device=points.device)
    claims = getattr(attack, "claims", None)

    def keep(at: Tensor, answer: Answer, rows: Rows) -> None:
        wrong = misclassified(answer.decided, rows.labels, rows.target)
        if claims is not None:
            wrong = claims(answer.logits, rows)
        length = distance(at, rows.images, attack.norm)
        nearer = wrong & (length < shortest[rows.example])
        chosen = rows.example[nearer]
        points[chosen] = at[nearer]
        shortest[chosen] = length[nearer]

    for run in range(runs_of(attack, rows.rivals.shape[1] + 1)):
        rows = everything if run == 0 else _again(everything, run)
        state = attack.start(rows)
        while len(rows.example):
            query = attack.ask(state, rows)
            at = query.points.clone()
            answer = asked.answer(query, rows)
            keep(at, answer, rows)
            state = attack.tell(state, rows, answer)
            done = attack.finished(state, rows)
            ending = done.nonzero()[:, 0]
            if len(ending):
                final, ended = attack.last(state)[ending], take(rows, ending)
                keep(final, asked.answer(Query(final, "logits"), ended), ended)
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


def _scored(attack: Attack, state: Any, rows: Rows, answer: Answer) -> Tensor | None:
    """The losses (B,), minus infinity where an attack looks outside the ball on purpose."""
    loss, inside = _loss(attack, state, rows, answer), getattr(attack, "inside", None)
    if inside is None or loss is None:
        return loss
    return loss.masked_fill(~inside(state, rows), -torch.inf)


def _loss(attack: Attack, state: Any, rows: Rows, answer: Answer) -> Tensor | None:
    """What is compared between iterates: (B,)."""
    score = getattr(attack, "score", None)
    return answer.loss if score is None else torch.as_tensor(score(state, rows, answer))


def _better(
    best: Tensor | None, best_loss: Tensor | None, points: Tensor, loss: Tensor | None
) -> tuple[Tensor, Tensor]:
    assert loss is not None
    if best is None or best_loss is None:
        return points.clone(), loss
    higher = loss > best_loss
    return torch.where(per_row(higher, points), points, best), torch.maximum(loss, best_loss)
