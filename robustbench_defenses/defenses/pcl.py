"""Prototype conformity loss (PCL): features close to their class's prototype, far from the others.

Stage 1 trains with cross-entropy. Stage 2 adds, at every tapped layer, per image i:

    PC   = |f_i - w_y| - 1/(K-1) sum_{j != y} ( |f_i - w_j| + |w_y - w_j| )
    LOSS = CE + sum over layers PC                              (Mustafa et al. 2019, eq. 3 to 5)

`--variant code` (default) follows the published code with its schedule mended: squared distances,
prototypes a for the pull and a second set b for the push, which weighs `repulse_weight`, and no
prototype-to-prototype term:

    PROX = mean_i |f_i - a_{y_i}|^2,   CON = mean_{i, j != y_i} |f_i - b_j|^2
    LOSS = CE + sum over taps ( PROX - w_c CON )

`--variant paper` is the printed form. `pcl_at_fgsm` and `pcl_at_pgd` train on clean and adversarial
images together; the first is what comparison tables print as PCL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.pgd import PGD
from . import schedules
from .aicr_centres import Centres, geometry, start_at_class_means
from .aicr_losses import attract, distances, repulse
from .base import (
    Batch,
    Optimiser,
    Parts,
    Phase,
    RobustCheck,
    Setup,
    Terms,
    check_options,
    optimiser,
)
from .inner import check_interval, crafted, drawn_eps, inner_attack

CARD = {
    "object": "PCL",
    "version": 1,
    "source": "Mustafa et al. 2019, equations 3 to 5",
    "variants": {
        "pcl_at_fgsm": {
            "set": {"perturbation": "fgsm", "repulse_weight": 0.00001},
            "summary": "PCL on clean and FGSM images",
        },
        "pcl_at_pgd": {
            "set": {"perturbation": "pgd", "repulse_weight": 0.00001},
            "summary": "PCL on clean and PGD images",
        },
    },
    "readings": {
        "code": {},
        "paper": {"squared": False, "separate_centres": False, "repulse_weight": 1.0,
                  "between_prototypes": True},
    },
    "models": {"digits": "lenet", "mnist": "cnn6", "fashion_mnist": "cnn6", "*": "resnet110"},
    "params": {
        "perturbation": {"help": "train on these images beside the clean ones"},
        "eps_low": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"cifar10": 0.02}},
        "eps_high": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"cifar10": 0.05}},
        "squared": {"help": "squared distances (code) instead of Euclidean ones (paper)"},
        "separate_centres": {"help": "a second set of prototypes for the push (code)"},
        "repulse_weight": {"min": 0, "help": "weight of the push", "papers": {"code": 0.0001}},
        "between_prototypes": {"help": "the prototype-to-prototype term of the paper"},
        "centre_init": {"help": "prototypes start at N(0, 1), or at the class means of stage 1"},
        "attract_rate": {"min": 0, "help": "SGD rate of the prototypes", "papers": {"code": 0.5}},
        "repulse_rate": {
            "min": 0,
            "help": "SGD rate of the second set, gradient rescaled",
            "papers": {"code": 0.0001},
        },
        "taps": {"help": "tapped layers; none given: the last two that the network names"},
        "pretrain_epochs": {"unit": "epochs", "min": 0, "help": "stage 1", "papers": {"code": 164}},
    },
    "datasets": {
        "cifar10": {"eps_low": 0.02, "eps_high": 0.05},
        "cifar100": {"eps_low": 0.02, "eps_high": 0.05},
        "svhn": {"eps_low": 0.02, "eps_high": 0.05},
    },
    "presets": {
        "*": {"schedule": "multistep", "milestones": "0.355,0.575,0.9", "weight_decay": 0.0001},
        "smoke": {"epochs": 3, "pretrain_epochs": 2, "batch_size": 64, "centre_init": "class_means",
                  "model.width": 8},
        "quick": {"epochs": 4, "pretrain_epochs": 2, "batch_size": 256,
                  "centre_init": "class_means", "model.width": 16},
        "quick:digits": {"epochs": 12, "pretrain_epochs": 5, "batch_size": 64, "model.width": 32},
        "short": {"epochs": 30, "pretrain_epochs": 5, "batch_size": 256},
        "paper": {"epochs": 300, "pretrain_epochs": 50, "batch_size": 256, "validation": 0},
        "paper:cifar10": {"epochs": 400, "pretrain_epochs": 164, "batch_size": 128,
                          "optimiser": "sgd", "learning_rate": 0.01},
    },
}  # fmt: skip


@dataclass(frozen=True)
class PCL:
    perturbation: Literal["none", "fgsm", "pgd"] = "none"
    eps_low: float = 0.1
    eps_high: float = 0.3
    squared: bool = True
    separate_centres: bool = True
    repulse_weight: float = 0.0001
    between_prototypes: bool = False
    centre_init: Literal["normal", "class_means"] = "normal"
    attract_rate: float = 0.5
    repulse_rate: float = 0.0001
    taps: tuple[str, ...] = ()
    pretrain_epochs: int = 50

    def __post_init__(self) -> None:
        check_interval(self.eps_low, self.eps_high)

    def parts(self, setup: Setup) -> Parts:
        """The network and the prototypes of each tap (pulling, pushing)."""
        network = setup.model()
        with torch.no_grad():
            taps = setup.tapped(network, torch.zeros(2, *setup.shape))
        named = [name for name in taps if name != "logits"]
        widths = {name: taps[name][0].numel() for name in self.taps or named[-2:]}
        parts: Parts = {"network": network, "centres": Centres(widths, setup.classes)}
        if self.separate_centres:
            parts["repulsive"] = Centres(widths, setup.classes)
        return parts

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """Stage 1: cross-entropy; stage 2: the whole loss. Only stage 2 is deployed."""
        settings, network = setup.settings, parts["network"]
        if self.pretrain_epochs:

            def clean(batch: Batch) -> Terms:
                logits = setup.forward(network, batch.images)
                return {"cross_entropy": F.cross_entropy(logits, batch.labels)}

            first = settings if settings.optimiser == "adam" else replace(
                settings, learning_rate=10 * settings.learning_rate
            )  # fmt: skip
            steps = optimiser(network.parameters(), first, schedule=schedules.constant)
            yield Phase(
                "pretrain", self.pretrain_epochs, (steps,), clean, trains=("network",),
                selects=False,
            )  # fmt: skip

        def loss(batch: Batch) -> Terms:
            return self.objective(setup, parts, batch)

        def begin() -> None:
            if self.centre_init == "class_means":
                start_at_class_means(setup, parts)

        def monitor(images: Tensor, labels: Tensor) -> dict[str, float]:
            return geometry(setup, parts, images, labels)

        check = RobustCheck(PGD(steps=10, rel_step=0.25), self.eps_high)
        yield Phase(
            "pcl",
            settings.epochs,
            self._optimisers(setup, parts),
            loss,
            begin=begin,
            monitor=monitor,
            robust=None if self.perturbation == "none" else check,
        )

    def _optimisers(self, setup: Setup, parts: Parts) -> tuple[Optimiser, ...]:
        """Network by the settings; prototypes by SGD at rates of their own.

        The code divides the second set's gradient by its weight, which is dividing its rate.
        """
        drops = schedules.multistep(setup.settings.milestones, setup.settings.gamma)
        made = [optimiser(parts["network"].parameters(), setup.settings)]
        pulling = torch.optim.SGD(parts["centres"].parameters(), lr=self.attract_rate)
        made.append(Optimiser(pulling, drops))
        if self.separate_centres:
            rate = self.repulse_rate / (self.repulse_weight or 1.0)
            pushing = torch.optim.SGD(parts["repulsive"].parameters(), lr=rate)
            made.append(Optimiser(pushing, drops))
        return tuple(made)

    def objective(self, setup: Setup, parts: Parts, batch: Batch) -> Terms:
        """The terms of the loss over clean (and adversarial) images, summed over the taps."""
        network, images, labels = parts["network"], batch.images, batch.labels
        if self.perturbation != "none":
            eps = drawn_eps(batch, self.eps_low, self.eps_high)
            made = crafted(setup, network, batch, inner_attack(self.perturbation), eps)
            images, labels = torch.cat([images, made]), torch.cat([labels, labels])
        taps = setup.tapped(network, images)
        centres = parts["centres"]
        repulsive = parts["repulsive"] if self.separate_centres else centres
        assert isinstance(centres, Centres)
        assert isinstance(repulsive, Centres)
        pull = push = between = taps["logits"].new_zeros(())
        for name in centres.names:
            features = taps[name].flatten(1)
            pull = pull + attract(features, centres.of(name), labels, self.squared)
            push = push + repulse(features, repulsive.of(name), labels, self.squared)
            if self.between_prototypes:
                between = between + prototype_distance(centres.of(name), labels, self.squared)
        terms = {
            "cross_entropy": F.cross_entropy(taps["logits"], labels),
            "attract": pull,
            "repulse": -self.repulse_weight * push,
        }
        if self.between_prototypes:
            terms["between"] = -self.repulse_weight * between
        return terms

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The network."""
        check_options(options, {})
        return parts["network"]


def prototype_distance(centres: Tensor, labels: Tensor, squared: bool) -> Tensor:
    """Mean over i and j != y_i of |w_{y_i} - w_j|, centres (K, d), labels (B,); a scalar."""
    apart = distances(centres, centres, squared)
    apart = apart * (1 - torch.eye(len(centres)).to(apart))
    return apart[labels].sum() / (len(labels) * (len(centres) - 1))
