"""Adversarial training: the loss is taken at the worst image that PGD finds in the ball.

    min_w E[ max_{|d| <= eps} CE(f_w(x + d), y) ]                     (Madry et al. 2018, eq. 2.1)

The inner maximum is the last iterate of PGD from a random start; the update sees adversarial images
only. Starting at the full budget of 0.3, MNIST training can sit at chance for epochs; `eps_ramp`
lets the budget grow from 0 over that share of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.pgd import PGD
from ..core.norms import check_eps
from .base import Batch, Parts, Phase, RobustCheck, Setup, Terms, check_options, optimiser
from .inner import crafted

CARD = {
    "object": "PGDAT",
    "version": 1,
    "source": "Madry et al. 2018, equation 2.1",
    "aliases": ["at", "madry"],
    "models": {"*": "lenet"},
    "params": {
        "norm": {"help": "norm of the training budget"},
        "eps": {
            "unit": "pixel units",
            "min": 0,
            "help": "training budget",
            "papers": {"mnist": 0.3},
        },
        "steps": {"unit": "iterations", "min": 1, "help": "PGD steps", "papers": {"mnist": 40}},
        "rel_step": {"unit": "share of eps", "min": 0, "help": "step", "papers": {"mnist": 0.0333}},
        "random_start": {"help": "start at a uniform point of the ball"},
        "eps_ramp": {
            "unit": "share of training",
            "min": 0,
            "max": 1,
            "help": "the budget grows linearly from 0 over this share",
        },
    },
    "datasets": {"digits": {"eps": 0.2}, "cifar10": {"eps": "8/255"}},
    "presets": {
        "smoke": {"epochs": 3, "batch_size": 64, "steps": 3, "rel_step": 0.5},
        "quick": {"epochs": 6, "steps": 7, "eps_ramp": 0.3},
        "quick:digits": {"epochs": 30, "batch_size": 64},
        "short": {"epochs": 20, "eps_ramp": 0.3},
        "paper": {
            "epochs": 83,
            "batch_size": 50,
            "learning_rate": 0.0001,
            "schedule": "constant",
            "steps": 40,
            "rel_step": "1/30",
        },
    },
}


@dataclass(frozen=True)
class PGDAT:
    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float = 0.3
    steps: int = 10
    rel_step: float = 0.25
    random_start: bool = True
    eps_ramp: float = 0.0

    def __post_init__(self) -> None:
        check_eps(self.eps, self.norm)

    def parts(self, setup: Setup) -> Parts:
        """The network alone."""
        return {"network": setup.model()}

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """One phase; the best checkpoint is chosen by accuracy under PGD-10 at the full budget."""
        network = parts["network"]
        inner = PGD(
            norm=self.norm,
            steps=self.steps,
            rel_step=self.rel_step,
            random_start=self.random_start,
        )

        def loss(batch: Batch) -> Terms:
            eps = ramp(self.eps, self.eps_ramp, batch.progress)
            adversarial = crafted(setup, network, batch, inner, eps)
            logits = setup.forward(network, adversarial)
            return {"adversarial_cross_entropy": adversarial_loss(logits, batch.labels)}

        yield Phase(
            "train",
            setup.settings.epochs,
            (optimiser(network.parameters(), setup.settings),),
            loss,
            robust=RobustCheck(PGD(norm=self.norm, steps=10, rel_step=0.25), self.eps),
            ramped=self.eps_ramp,
        )

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The network."""
        check_options(options, {})
        return parts["network"]


def adversarial_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Equation 2.1 at the images of the inner maximum: mean CE of logits (B, K), labels (B,)."""
    return F.cross_entropy(logits, labels)


def ramp(eps: float, share: float, progress: float) -> float:
    """The budget at `progress`: linear from 0 over the first `share` of training, then `eps`."""
    return eps * min(1.0, progress / share) if share > 0 else eps
