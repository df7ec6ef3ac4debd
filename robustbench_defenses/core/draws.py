"""Subjects that answer at random: how many passes make one answer, and whence their randomness.

A random subject says so by attributes: `random = True`, `draws` (passes that make one answer),
`aggregation` (how they are joined) and, where an attacker should average otherwise, `eot`. Their
numbers come from the global generators, which are seeded for each answer and then put back: equal
questions have equal answers, and nobody outside notices.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError

Aggregation = Literal["vote", "logits_mean", "prob_mean"]
Eot = Literal["loss_mean", "logits_mean", "prob_mean"]
DRAWS = 20  # of a subject that does not say: the passes of AutoAttack's `rand` version
MOST_DRAWS = 10_000


@dataclass(frozen=True)
class Randomness:
    """How a random subject answers, and what an attacker averages.

    `draws` passes make one answer: the class most of them name (`vote`), or the class of the
    largest mean logit or mean probability. `eot`: gradients are those of the mean loss, or of the
    loss of mean logits or mean probabilities (Athalye et al. 2018).
    """

    draws: int = DRAWS
    aggregation: Aggregation = "vote"
    eot: Eot = "loss_mean"

    def scores(self, logits: Tensor) -> Tensor:
        """One answer (B, K) from the logits (draws, B, K) of its passes; ordered like logits.

        Votes are given as logarithms of their shares, in which the mean probabilities count as one
        more vote: they settle ties.
        """
        if self.aggregation == "logits_mean":
            return logits.mean(0)
        likely = mean_probabilities(logits)
        if self.aggregation == "prob_mean":
            return likely
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
        return ((votes + likely.exp()) / (len(logits) + 1)).log()


def mean_probabilities(logits: Tensor) -> Tensor:
    """Logarithms (B, K) of the mean over draws of the softmax of `logits` (draws, B, K)."""
    return torch.logsumexp(logits.log_softmax(2), 0) - torch.tensor(len(logits)).log().to(logits)


def randomness_of(subject: object) -> Randomness | None:
    """What `subject` declares by its attributes; None for a deterministic one.

    Values that make no sense are a `UserError`.
    """
    if getattr(subject, "random", False) is not True:
        return None
    return declared(
        type(subject).__name__,
        getattr(subject, "draws", DRAWS),
        getattr(subject, "aggregation", "vote"),
        getattr(subject, "eot", None),
    )


def declared(name: str, draws: Any, aggregation: Any, eot: Any = None) -> Randomness:
    """Checked; without `eot` the attacker averages what the subject averages (votes: the loss)."""
    if not isinstance(draws, int) or isinstance(draws, bool) or not 1 <= draws <= MOST_DRAWS:
        raise UserError(
            f"{name} is random with draws = {draws!r}",
            hint=f"a whole number of passes per answer, from 1 to {MOST_DRAWS:,}",
        )
    eot = ("loss_mean" if aggregation == "vote" else aggregation) if eot is None else eot
    for what, value, known in (
        ("aggregation", aggregation, get_args(Aggregation)),
        ("eot", eot, get_args(Eot)),
    ):
        if value not in known:
            raise UserError(
                f"{name} is random with {what} = {value!r}", hint=f"one of {', '.join(known)}"
            )
    return Randomness(draws, aggregation, eot)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators begin at `seed` (32 bits); afterwards they are as before.

    Those of torch (the CPU's and `device`'s), of the standard library and of numpy.
    """
    import numpy as np

    cuda = [device] if device.type == "cuda" else []
    plain, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(arrays)
