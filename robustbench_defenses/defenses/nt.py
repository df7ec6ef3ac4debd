"""Natural training: cross-entropy on clean images, no defense; the twin every defense is held to.

min E[ CE(f(x), y) ]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Batch, Parts, Phase, Setup, Terms, check_options, optimiser

CARD = {
    "object": "NT",
    "version": 1,
    "source": "empirical risk minimisation",
    "aliases": ["natural", "standard"],
    "models": {"*": "lenet"},
    "params": {
        "label_smoothing": {
            "unit": "share",
            "min": 0,
            "max": 1,
            "help": "share of the label's mass spread over all classes",
        },
    },
    "presets": {
        "smoke": {"epochs": 3, "batch_size": 64},
        "quick": {"epochs": 5},
        "quick:digits": {"epochs": 20, "batch_size": 64},
        "short": {"epochs": 20},
        "paper": {"epochs": 50},
    },
}


@dataclass(frozen=True)
class NT:
    label_smoothing: float = 0.0

    def parts(self, setup: Setup) -> Parts:
        """The network alone."""
        return {"network": setup.model()}

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """One phase of cross-entropy."""
        network = parts["network"]

        def loss(batch: Batch) -> Terms:
            logits = setup.forward(network, batch.images)
            return {"cross_entropy": cross_entropy(logits, batch.labels, self.label_smoothing)}

        optimisers = (optimiser(network.parameters(), setup.settings),)
        yield Phase("train", setup.settings.epochs, optimisers, loss)

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The network."""
        check_options(options, {})
        return parts["network"]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the batch of -sum_k q_k log softmax(z)_k.

    `logits` z (B, K), `labels` (B,); q is 1 at the label, with the share `smoothing` spread evenly.
    """
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)
