"""The verdict: a fresh float32 forward of the deployed subject. Nothing else counts.

A random subject answers by its own rule over fresh draws, and what counts against it has to count
twice: an attack that claims many points would else find the one whose draws were lucky.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..core.draws import Randomness, randomness_of, seeded
from ..core.norms import distance, largest_allowed
from ..core.rng import name_key
from ..core.view import Logits
from .caller import Cost, blaming, check_logits, check_tensor
from .losses import misclassified
from .memory import out_of_memory

# Images of one float32 pass on the CPU, whose caches they have to share with the activations: of
# 1,000 at once a pass costs 1.2 to 1.6 times as much (lenet, cnn6, resnet18).
CPU_ROWS = 64


class Verdict(NamedTuple):
    """Which points (B,) bool count, their `distance` (B,) float64 from the clean images, and
    `share` (B,) float64: of the subject's draws that count (1 or 0 for a deterministic one)."""

    counts: Tensor
    distance: Tensor
    share: Tensor


@dataclass
class Judge:
    """Judges claimed adversarial images for one deployed subject.

    `subject`: its name for messages; `numbers` (N,): the examples' numbers in the data set;
    `seed`: of the draws of a random subject, which are fresh for every verdict.
    """

    deployed: Logits
    subject: str
    numbers: Tensor
    cost: Cost
    batch_size: int = 1000
    invalid: int = 0  # claimed points outside the ball or the box, or not finite
    seed: object = 0

    @property
    def randomness(self) -> Randomness | None:
        """How the deployed subject answers where it does so at random."""
        return randomness_of(self.deployed)

    def logits(self, images: Tensor, example: Tensor) -> Tensor:
        """Float32 logits (B, K) of the deployed subject, checked; `example` (B,) in the block.

        Of a random subject: scores by its own rule over fresh draws.
        """
        return self.scores(self.draws(images, example))

    def draws(self, images: Tensor, example: Tensor) -> Tensor:
        """Logits (draws, B, K) of fresh draws; of a deterministic subject (1, B, K)."""
        randomness = self.randomness
        if randomness is None:
            return self._pass(images, example)[None]
        # The passes made so far tell this question from all others.
        place = (self.seed, int(self.numbers[0]), self.cost.forward)
        with seeded(name_key("verdict", *place), images.device):
            return torch.stack([self._pass(images, example) for _ in range(randomness.draws)])

    def scores(self, draws: Tensor) -> Tensor:
        """The answer (B, K) that draws (draws, B, K) make, ordered like logits."""
        randomness = self.randomness
        return draws[0] if randomness is None else randomness.scores(draws)

    def _pass(self, images: Tensor, example: Tensor) -> Tensor:
        parts: list[Tensor] = []
        start, most = 0, CPU_ROWS if images.device.type == "cpu" else self.batch_size
        while start < len(images):
            chunk = slice(start, start + min(self.batch_size, most))
            try:
                parts.append(self._ask(images[chunk], self.numbers[example[chunk]]))
            except Exception as error:
                size = len(images[chunk])
                if size == 1 or not out_of_memory(error):
                    raise
                self.batch_size = size // 2
            else:
                start = chunk.stop
        self.cost.forward += len(images)
        return torch.cat(parts) if parts else images.new_zeros((0, 1))

    def _ask(self, images: Tensor, numbers: Tensor) -> Tensor:
        with (
            torch.no_grad(),
            torch.autocast(images.device.type, enabled=False),
            blaming(self.subject, numbers),
        ):
            logits = self.deployed(images.contiguous())
        check_tensor(logits, self.subject)
        check_logits(logits, numbers, self.subject)
        return logits

    def judge(
        self,
        points: Tensor,
        clean: Tensor,
        labels: Tensor,
        target: Tensor,
        eps: Tensor,
        norm: str,
        example: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The first two parts of `verdict`."""
        found = self.verdict(points, clean, labels, target, eps, norm, example)
        return found.counts, found.distance

    def verdict(
        self,
        points: Tensor,
        clean: Tensor,
        labels: Tensor,
        target: Tensor,
        eps: Tensor,
        norm: str,
        example: Tensor,
    ) -> Verdict:
        """Which `points` (B, C, H, W) count, and how far they lie from `clean`.

        A point counts when the deployed subject misclassifies it (targeted: into the target), all
        its values are finite and in [0, 1], and its norm is within `eps` (B,) by the one tolerance.
        """
        flat = points.flatten(1)
        valid = (flat >= 0).all(1) & (flat <= 1).all(1)  # false for NaN too
        length = distance(points, clean, norm)
        valid &= length <= largest_allowed(eps.double())
        self.invalid += int((~valid).sum())
        counts, share = torch.zeros_like(valid), torch.zeros_like(length)
        chosen = valid.nonzero()[:, 0]
        rounds = 1 if self.randomness is None else 2
        for _ in range(rounds):
            if len(chosen) == 0:
                break
            draws = self.draws(points[chosen], example[chosen])
            aim = (labels[chosen], target[chosen])
            share[chosen] = broken_share(draws, *aim)
            wrong = misclassified(self.scores(draws), *aim)
            counts[chosen] = wrong
            chosen = chosen[wrong]
        return Verdict(counts, length, share)


def clean_shares(judge: Judge, draws: Tensor, labels: Tensor, rows: int) -> Tensor | None:
    """`Outcome.broken_draws` (rows, N) before any attack, from `draws` (draws, N, K) of the clean
    images: the share of wrong draws of those misclassified, 0 of the others; None where the subject
    is not random."""
    if judge.randomness is None:
        return None
    wrong = judge.scores(draws).argmax(1) != labels
    share = broken_share(draws, labels, torch.full_like(labels, -1))
    return torch.where(wrong, share, 0.0).repeat(max(1, rows), 1)


def broken_share(draws: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """The share (B,) float64 of draws (draws, B, K) that are misclassified."""
    each = [misclassified(logits, labels, target) for logits in draws]
    return torch.stack(each).double().mean(0)


@contextlib.contextmanager
def evaluation_mode(*subjects: object) -> Iterator[None]:
    """Put modules into evaluation mode and give every part its own mode back afterwards."""
    modes = [
        (part, part.training)
        for subject in subjects
        if isinstance(subject, nn.Module)
        for part in subject.modules()
    ]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
