"""The verdict: a fresh float32 forward of the deployed subject. Nothing else counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.norms import distance, largest_allowed
from ..core.view import Logits
from .caller import Cost, blaming, check_logits, check_tensor, out_of_memory
from .losses import misclassified


@dataclass
class Judge:
    """Judges claimed adversarial images for one deployed subject.

    `subject`: its name for messages; `numbers` (N,): the examples' numbers in the data set.
    """

    deployed: Logits
    subject: str
    numbers: Tensor
    cost: Cost
    batch_size: int = 1000
    invalid: int = 0  # claimed points outside the ball or the box, or not finite

    def logits(self, images: Tensor, example: Tensor) -> Tensor:
        """Float32 logits (B, K) of the deployed subject, checked; `example` (B,) in the block."""
        parts: list[Tensor] = []
        start = 0
        while start < len(images):
            chunk = slice(start, start + self.batch_size)
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
        """Which `points` (B, C, H, W) count, and how far they lie from `clean`.

        A point counts when the deployed subject misclassifies it (targeted: into the target), all
        its values are finite and in [0, 1], and its norm is within `eps` (B,) by the one tolerance.
        Returns (counts (B,) bool, distance (B,) float64).
        """
        flat = points.flatten(1)
        valid = (flat >= 0).all(1) & (flat <= 1).all(1)  # false for NaN too
        length = distance(points, clean, norm)
        valid &= length <= largest_allowed(eps.double())
        self.invalid += int((~valid).sum())
        counts = torch.zeros_like(valid)
        chosen = valid.nonzero()[:, 0]
        if len(chosen):
            logits = self.logits(points[chosen], example[chosen])
            counts[chosen] = misclassified(logits, labels[chosen], target[chosen])
        return counts, length


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
