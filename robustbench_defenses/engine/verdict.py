"""The verdict: a fresh float32 forward of the deployed subject. Nothing else counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.norms import distance, largest_allowed
from ..core.view import Logits
from .caller import Cost, check_logits
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
        parts = []
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            for start in range(0, len(images), self.batch_size):
                chunk = images[start : start + self.batch_size].contiguous()
                try:
                    part = self.deployed(chunk)
                except (UserError, torch.OutOfMemoryError):
                    raise
                except Exception as error:
                    first = int(self.numbers[example[start]])
                    said = (str(error).splitlines() or ["no message"])[0]
                    raise UserError(
                        f"{self.subject} raises {type(error).__name__} for a batch that begins "
                        f"with test image {first}: {said}"
                    ) from error
                if not isinstance(part, Tensor):
                    raise UserError(
                        f"{self.subject} returns {type(part).__name__}, not a tensor of logits"
                    )
                check_logits(
                    part, self.numbers[example[start : start + self.batch_size]], self.subject
                )
                parts.append(part)
        self.cost.forward += len(images)
        return torch.cat(parts) if parts else images.new_zeros((0, 1))

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
