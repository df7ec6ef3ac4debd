"""Restricting in-variance and co-variance of representations, by centres and Barlow Twins (AICR).

Stage 1 trains on clean images with cross-entropy. Stage 2 sees each image x and a perturbed twin x'
and adds, at every tapped layer, a pull towards the centre of the class and a push from the others
(L_AR), and decorrelated, perturbation-invariant projections (L_VAR):

    x'   = clip(x + eps * sign(n), 0, 1),  n ~ N(0, I),  eps ~ U[eps_low, eps_high] per batch
    L_AR = |h - c_y| + |h' - c_y| - 1/(K-1) sum_{j != y} ( |h - c_j| + |h' - c_j| )           (8)
    Q    = Z^T Z' / B,  Z = bn(G(h)), Z' = bn(G(h'))                                          (11)
    VAR  = sum_i (1 - Q_ii)^2 + lambda sum_{i != j} Q_ij^2                                    (10)
    LOSS = CE(x) + CE(x') + sum over layers ( L_AR + alpha VAR )                              (12)

`--variant code` (default) follows the published code: squared distances, a second set of centres
for the push, its weight 0.001, VAR weighted 0.01/32 and only after 7 % of stage 2, centres and
projectors by SGD with rescaled gradients, means over the 2B images. `--variant paper` is what is
printed. Deployed: the logits (rule=softmax, as in the code), or the nearest centre
(rule=nearest_centre, equation 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.pgd import PGD
from ..core import rng
from ..core.errors import UserError
from . import schedules
from .aicr_centres import Centres, NearestCentre, geometry, key_of, start_at_class_means
from .aicr_losses import attract, projector, redundancy, repulse
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
    "object": "AICR",
    "version": 1,
    "source": "Alagurajah and Chu 2022, equations 8 to 12",
    "variants": {
        "ar": {"set": {"variance": False}, "summary": "AICR without the variance loss"},
        "aicr_at_fgsm": {
            "set": {"perturbation": "fgsm"},
            "summary": "AICR with FGSM images instead of noisy ones",
        },
        "ar_at_fgsm": {
            "set": {"variance": False, "perturbation": "fgsm"},
            "summary": "AICR with FGSM images, without the variance loss",
        },
    },
    "readings": {
        "code": {},
        "paper": {
            "squared": False,
            "separate_centres": False,
            "repulse_weight": 1.0,
            "alpha": 1.0,
            "variance_start": 0.0,
            "mean_over_views": False,
            "projector_optimiser": "adam",
        },
    },
    "models": {
        "digits": "lenet",
        "cifar10": "resnet110",
        "cifar100": "resnet110",
        "svhn": "resnet110",
        "*": "cnn6",
    },
    "params": {
        "perturbation": {"help": "how the perturbed twin is made"},
        "eps_low": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"mnist": 0.1}},
        "eps_high": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"mnist": 0.3}},
        "variance": {"help": "whether L_VAR is part of the loss"},
        "squared": {"help": "squared distances in L_AR (code) instead of Euclidean ones (paper)"},
        "separate_centres": {"help": "a second set of centres for the push (code)"},
        "repulse_weight": {"min": 0, "help": "weight of the push", "papers": {"aicr": 1}},
        "alpha": {"min": 0, "help": "weight of VAR; code: 0.01/32", "papers": {"aicr": 1}},
        "off_diagonal": {"min": 0, "help": "lambda of equation 10", "papers": {"aicr": 0.005}},
        "variance_start": {
            "unit": "share of stage 2",
            "min": 0,
            "max": 1,
            "help": "VAR is off before",
        },
        "mean_over_views": {"help": "mean over the 2B images (code) or sum of both views' means"},
        "centre_init": {"help": "centres start at N(0, 1), or at the class means of stage 1"},
        "attract_rate": {"min": 0, "help": "SGD rate of the centres"},
        "repulse_rate": {"min": 0, "help": "SGD rate of the repulsive centres, gradient rescaled"},
        "projector_rate": {"min": 0, "help": "SGD rate of the projectors, gradient rescaled"},
        "projector_optimiser": {"help": "SGD as in the code, or Adam as printed"},
        "projector_width": {"unit": "neurons", "min": 1, "papers": {"aicr": 1024}},
        "projector_depth": {"unit": "layers", "min": 0, "max": 3, "papers": {"aicr": 1}},
        "taps": {"help": "tapped layers; none given: all that the network names"},
        "pretrain_epochs": {
            "unit": "epochs",
            "min": 0,
            "help": "stage 1",
            "papers": {"mnist": 150},
        },
        "pretrain_decay": {"min": 0, "help": "weight decay of stage 1"},
    },
    "datasets": {
        "cifar10": {"eps_low": 0.01, "eps_high": 0.03},
        "cifar100": {"eps_low": 0.01, "eps_high": 0.03},
        "svhn": {"eps_low": 0.01, "eps_high": 0.03},
    },
    "presets": {
        "smoke": {
            "epochs": 3,
            "pretrain_epochs": 2,
            "batch_size": 64,
            "centre_init": "class_means",
            "projector_width": 64,
            "model.width": 8,
        },
        "quick": {
            "epochs": 4,
            "pretrain_epochs": 2,
            "batch_size": 256,
            "centre_init": "class_means",
            "model.width": 16,
        },
        "quick:digits": {
            "epochs": 12,
            "pretrain_epochs": 5,
            "batch_size": 64,
            "model.width": 32,
        },
        "short": {"epochs": 30, "pretrain_epochs": 5, "batch_size": 256},
        "paper": {"epochs": 300, "pretrain_epochs": 50, "batch_size": 256, "validation": 0},
        "paper:paper": {"pretrain_epochs": 150},
        "*": {"schedule": "multistep", "milestones": "2/3,5/6", "weight_decay": 0.00004},
    },
}

# The code drops the projectors' rate at epochs 30, 120 and 240 of 300.
PROJECTOR_DROPS = (0.1, 0.4, 0.8)


@dataclass(frozen=True)
class AICR:
    perturbation: Literal["noise", "fgsm"] = "noise"
    eps_low: float = 0.1
    eps_high: float = 0.3
    variance: bool = True
    squared: bool = True
    separate_centres: bool = True
    repulse_weight: float = 0.001
    alpha: float = 0.0003125
    off_diagonal: float = 0.005
    variance_start: float = 0.07
    mean_over_views: bool = True
    centre_init: Literal["normal", "class_means"] = "normal"
    attract_rate: float = 0.1
    repulse_rate: float = 0.001
    projector_rate: float = 0.1
    projector_optimiser: Literal["sgd", "adam"] = "sgd"
    projector_width: int = 1024
    projector_depth: int = 1
    taps: tuple[str, ...] = ()
    pretrain_epochs: int = 50
    pretrain_decay: float = 0.00001

    def __post_init__(self) -> None:
        check_interval(self.eps_low, self.eps_high)

    def parts(self, setup: Setup) -> Parts:
        """The network, the centres of each tap (attractive, repulsive), and the projectors."""
        network = setup.model()
        with torch.no_grad():
            taps = setup.tapped(network, torch.zeros(2, *setup.shape))
        widths = {name: taps[name][0].numel() for name in self._tap_names(list(taps))}
        parts: Parts = {"network": network, "centres": Centres(widths, setup.classes)}
        if self.separate_centres:
            parts["repulsive"] = Centres(widths, setup.classes)
        if self.variance:
            size, depth = self.projector_width, self.projector_depth
            parts["projectors"] = nn.ModuleDict(
                {key_of(name): projector(width, size, depth) for name, width in widths.items()}
            )
        return parts

    def _tap_names(self, available: list[str]) -> list[str]:
        known = [name for name in available if name != "logits"]
        for name in self.taps:
            if name not in known:
                raise UserError(
                    f"the network has no tap {name!r}", hint=f"taps: {', '.join(known)}"
                )
        return list(self.taps) or known

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """Stage 1: cross-entropy; stage 2: equation 12. Only stage 2 is deployed."""
        settings, network = setup.settings, parts["network"]
        if self.pretrain_epochs:

            def clean(batch: Batch) -> Terms:
                logits = setup.forward(network, batch.images)
                return {"cross_entropy": F.cross_entropy(logits, batch.labels)}

            steps = optimiser(
                network.parameters(),
                replace(settings, optimiser="adam"),
                weight_decay=self.pretrain_decay,
                schedule=schedules.constant,
            )
            yield Phase(
                "pretrain",
                self.pretrain_epochs,
                (steps,),
                clean,
                trains=("network",),
                selects=False,
            )

        def loss(batch: Batch) -> Terms:
            return self.objective(setup, parts, batch)

        def begin() -> None:
            if self.centre_init == "class_means":
                start_at_class_means(setup, parts)

        def monitor(images: Tensor, labels: Tensor) -> dict[str, float]:
            return geometry(setup, parts, images, labels)

        fgsm = self.perturbation == "fgsm"
        strong = RobustCheck(PGD(steps=10, rel_step=0.25), self.eps_high)
        yield Phase(
            "aicr",
            settings.epochs,
            self._optimisers(setup, parts),
            loss,
            begin=begin,
            monitor=monitor,
            robust=strong if fgsm else None,
        )

    def _optimisers(self, setup: Setup, parts: Parts) -> tuple[Optimiser, ...]:
        """Network by the settings; centres and projectors by SGD with rates of their own.

        The code divides a gradient by its loss weight before the step. For plain SGD that is the
        same as dividing the rate, which is done here.
        """
        drops = schedules.multistep(setup.settings.milestones, setup.settings.gamma)
        made = [optimiser(parts["network"].parameters(), setup.settings)]
        centres = torch.optim.SGD(parts["centres"].parameters(), lr=self.attract_rate)
        made.append(Optimiser(centres, drops))
        if self.separate_centres:
            rate = self.repulse_rate / (self.repulse_weight or 1.0)
            made.append(Optimiser(torch.optim.SGD(parts["repulsive"].parameters(), lr=rate), drops))
        weights = list(parts["projectors"].parameters()) if self.variance else []
        if weights and self.projector_optimiser == "adam":
            made.append(optimiser(iter(weights), setup.settings, weight_decay=0.0))
        elif weights:
            # VAR carries a constant 1/32 in the code, which the rescaling leaves in place.
            rate = self.projector_rate / (32 * self.alpha) if self.alpha else 0.0
            stepper = torch.optim.SGD(weights, lr=rate)
            made.append(Optimiser(stepper, schedules.multistep(PROJECTOR_DROPS)))
        return tuple(made)

    def perturb(self, setup: Setup, network: nn.Module, batch: Batch) -> Tensor:
        """x' of Algorithm 1 (B, C, H, W): sign noise, or one step of FGSM; one eps per batch."""
        eps = drawn_eps(batch, self.eps_low, self.eps_high)
        if self.perturbation == "noise":
            return sign_noise(batch.images, eps, batch.keys("noise"))
        return crafted(setup, network, batch, inner_attack("fgsm"), eps)

    def objective(self, setup: Setup, parts: Parts, batch: Batch) -> Terms:
        """The terms of equation 12, summed over the tapped layers."""
        network, size = parts["network"], len(batch.images)
        perturbed = self.perturb(setup, network, batch)
        taps = setup.tapped(network, torch.cat([batch.images, perturbed]))
        labels = torch.cat([batch.labels, batch.labels])
        views = 1.0 if self.mean_over_views else 2.0  # two means over B are twice the mean over 2B
        pull = push = decorrelation = taps["logits"].new_zeros(())
        centres = parts["centres"]
        repulsive = parts["repulsive"] if self.separate_centres else centres
        with_variance = self.variance and batch.progress >= self.variance_start
        assert isinstance(centres, Centres)
        assert isinstance(repulsive, Centres)
        for name in centres.names:
            features = taps[name].flatten(1)  # (2B, d)
            pull = pull + attract(features, centres.of(name), labels, self.squared)
            push = push + repulse(features, repulsive.of(name), labels, self.squared)
            if with_variance:
                projectors = parts["projectors"]
                assert isinstance(projectors, nn.ModuleDict)
                projected = setup.forward(projectors[key_of(name)], features)
                views_of_it = projected[:size], projected[size:]
                decorrelation = decorrelation + redundancy(*views_of_it, self.off_diagonal)
        terms = {
            "cross_entropy": views * F.cross_entropy(taps["logits"], labels),
            "attract": views * pull,
            "repulse": -views * self.repulse_weight * push,
        }
        if self.variance:
            terms["variance"] = self.alpha * decorrelation
        return terms

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The network, or with rule=nearest_centre equation 9 at `tap` (default: the last)."""
        centres = parts["centres"]
        assert isinstance(centres, Centres)
        known = {"rule": ("softmax", "nearest_centre"), "tap": tuple(centres.names)}
        check_options(options, known)
        if options.get("rule", "softmax") == "softmax":
            if "tap" in options:
                raise UserError("deployment option tap belongs to rule=nearest_centre")
            return parts["network"]
        return NearestCentre(parts["network"], centres, options.get("tap", centres.names[-1]))


def sign_noise(images: Tensor, eps: float, key: Tensor) -> Tensor:
    """clip(x + eps * sign(n), 0, 1), n ~ N(0, I): images (B, C, H, W), `key` (B,) int32."""
    # The sign of a normal number is a fair coin.
    heads = rng.uniform(key, tuple(images.shape[1:])) < 0.5
    return torch.where(heads, images + eps, images - eps).clamp_(0, 1)
