"""Mixed adversarial training: each batch holds clean images and adversarial ones of one step.

    x'   = clip(x + eps * sign(grad_x CE(x, y)), 0, 1),  eps ~ U[eps_low, eps_high] per batch
    LOSS = ( sum CE(x) + lambda sum CE(x') ) / ( B + lambda B )     (Kurakin et al. 2017, eq. 3)

`attack=bim` takes 10 steps of eps/10 instead. Kurakin et al. craft with the least likely class
against label leaking (`labels=least_likely`); the comparisons that print an "AT" column use the
true label, as ADP's public code does. Training on one step alone gives robustness to one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.pgd import PGD
from .base import Batch, Parts, Phase, RobustCheck, Setup, Terms, check_options, optimiser
from .inner import check_interval, crafted, drawn_eps, inner_attack

CARD = {
    "object": "FGSMAT",
    "version": 1,
    "source": "Kurakin, Goodfellow and Bengio 2017, equation 3",
    "variants": {
        "bim_at": {"set": {"attack": "bim"}, "summary": "Mixed adversarial training on BIM images"},
    },
    "models": {"digits": "lenet", "mnist": "cnn6", "fashion_mnist": "cnn6", "*": "resnet20"},
    "params": {
        "attack": {"help": "how the adversarial half is made"},
        "labels": {"help": "label that the attack leaves, or the class that it steps towards"},
        "eps_low": {
            "unit": "pixel units", "min": 0, "max": 1, "papers": {"adp cifar10": 0.01},
        },
        "eps_high": {
            "unit": "pixel units", "min": 0, "max": 1, "papers": {"adp cifar10": 0.05},
        },
        "weight": {
            "min": 0,
            "help": "lambda: weight of an adversarial image against a clean one",
            "papers": {"kurakin": 0.3, "adp": 1},
        },
    },
    "datasets": {
        "cifar10": {"eps_low": 0.01, "eps_high": 0.05},
        "cifar100": {"eps_low": 0.01, "eps_high": 0.05},
        "svhn": {"eps_low": 0.01, "eps_high": 0.05},
    },
    "presets": {
        "*": {"schedule": "multistep", "milestones": "0.375,0.75"},
        "smoke": {"epochs": 3, "batch_size": 64},
        "quick": {"epochs": 6, "batch_size": 128, "model.width": 16},
        "quick:digits": {"epochs": 20, "batch_size": 64, "model.width": 32},
        "short": {"epochs": 30, "batch_size": 128},
        "paper": {"epochs": 40, "batch_size": 64, "validation": 0},
        "paper:cifar10": {"epochs": 180, "milestones": "4/9,2/3,8/9"},
    },
}  # fmt: skip


@dataclass(frozen=True)
class FGSMAT:
    attack: Literal["fgsm", "bim"] = "fgsm"
    labels: Literal["true", "predicted", "least_likely"] = "true"
    eps_low: float = 0.1
    eps_high: float = 0.3
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.eps_low, self.eps_high)

    def parts(self, setup: Setup) -> Parts:
        """The network alone."""
        return {"network": setup.model()}

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """One phase; PGD-10 on held-out images tells when training overfits to one step."""
        network = parts["network"]

        def loss(batch: Batch) -> Terms:
            adversarial = self.perturb(setup, network, batch)
            logits = setup.forward(network, torch.cat([batch.images, adversarial]))
            clean, perturbed = logits.chunk(2)
            share = 1 / (1 + self.weight)
            return {
                "cross_entropy": share * F.cross_entropy(clean, batch.labels),
                "adversarial_cross_entropy": (1 - share) * F.cross_entropy(perturbed, batch.labels),
            }

        yield Phase(
            "train",
            setup.settings.epochs,
            (optimiser(network.parameters(), setup.settings),),
            loss,
            robust=RobustCheck(PGD(steps=10, rel_step=0.25), self.eps_high),
        )

    def perturb(self, setup: Setup, network: nn.Module, batch: Batch) -> Tensor:
        """x' (B, C, H, W) at one eps for the batch."""
        eps = drawn_eps(batch, self.eps_low, self.eps_high)
        labels, target = batch.labels, None
        if self.labels != "true":
            network.eval()
            with torch.no_grad():
                logits = setup.forward(network, batch.images)
            network.train()
            if self.labels == "predicted":
                labels = logits.argmax(1)
            else:
                target = logits.argmin(1)
        return crafted(setup, network, batch, inner_attack(self.attack), eps, labels, target)

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The network."""
        check_options(options, {})
        return parts["network"]
