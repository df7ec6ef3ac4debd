"""Adaptive diversity promoting (ADP): an ensemble whose members differ on the wrong classes.

F_m: softmax of member m; F: their mean; u_m: F_m without the label's entry, scaled to length 1;
U = [u_1 ... u_M].

    H    = - sum_k F_k log F_k
    ED   = det(U^T U)
    LOSS = sum_m CE(F_m, y) - alpha H - beta log ED                  (Pang et al. 2019, eq. 5, 7)

log ED is log det(U^T U + 1e-6 I), as in the published code: else equal members give -inf.
Deployed: log F, whose arg max is the ensemble's answer. `adp_at_fgsm` and `adp_at_pgd` add the loss
on adversarial images of log F.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.pgd import PGD
from ..core.errors import UserError
from ..core.view import View
from .base import Batch, Parts, Phase, RobustCheck, Setup, Terms, check_options, optimiser
from .inner import check_interval, crafted, drawn_eps, inner_attack

CARD = {
    "object": "ADP",
    "version": 1,
    "source": "Pang et al. 2019, equations 5 and 7",
    "variants": {
        "adp_at_fgsm": {
            "set": {"perturbation": "fgsm"},
            "summary": "ADP with the same loss on FGSM images",
        },
        "adp_at_pgd": {
            "set": {"perturbation": "pgd"},
            "summary": "ADP with the same loss on PGD images",
        },
    },
    "models": {"digits": "lenet", "mnist": "cnn6", "fashion_mnist": "cnn6", "*": "resnet20"},
    "params": {
        "members": {"unit": "networks", "min": 1, "help": "M", "papers": {"adp": 3}},
        "alpha": {"min": 0, "help": "weight of the entropy", "papers": {"adp": 2}},
        "beta": {"min": 0, "help": "weight of the diversity", "papers": {"adp": 0.5}},
        "perturbation": {"help": "add the loss on these images"},
        "eps_low": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"cifar10": 0.01}},
        "eps_high": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"cifar10": 0.05}},
        "subtract_mean": {"help": "subtract the training images' mean first, as the code does"},
    },
    "datasets": {
        "cifar10": {"eps_low": 0.01, "eps_high": 0.05},
        "cifar100": {"eps_low": 0.01, "eps_high": 0.05},
        "svhn": {"eps_low": 0.01, "eps_high": 0.05},
    },
    "presets": {
        "*": {"schedule": "multistep", "milestones": "0.375,0.75", "weight_decay": 0.0001},
        "smoke": {"epochs": 3, "batch_size": 64, "model.width": 8},
        "quick": {"epochs": 5, "batch_size": 128, "model.width": 16},
        "quick:digits": {"epochs": 15, "batch_size": 64, "model.width": 32},
        "short": {"epochs": 30, "batch_size": 64},
        "paper": {"epochs": 40, "batch_size": 64, "validation": 0},
        "paper:cifar10": {"epochs": 180, "milestones": "2/3,8/9"},
    },
}

FLOOR = 1e-20  # inside the entropy's logarithm, as in the code
RIDGE = 1e-6


@dataclass(frozen=True)
class ADP:
    members: int = 3
    alpha: float = 2.0
    beta: float = 0.5
    perturbation: Literal["none", "fgsm", "pgd"] = "none"
    eps_low: float = 0.1
    eps_high: float = 0.3
    subtract_mean: bool = True

    def __post_init__(self) -> None:
        check_interval(self.eps_low, self.eps_high)

    def parts(self, setup: Setup) -> Parts:
        """The ensemble as one network."""
        if self.members > setup.classes - 1:
            raise UserError(
                f"adp with {self.members} members needs at least {self.members + 1} classes, "
                f"{setup.dataset} has {setup.classes}",
                hint=f"--set members={setup.classes - 1}",
            )
        return {"network": Ensemble([setup.model() for _ in range(self.members)], setup.shape)}

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """One phase; all members train together."""
        network = parts["network"]
        assert isinstance(network, Ensemble)

        def begin() -> None:
            if self.subtract_mean:
                network.start_at_mean(setup)

        def loss(batch: Batch) -> Terms:
            return self.objective(setup, network, batch)

        check = RobustCheck(PGD(steps=10, rel_step=0.25), self.eps_high)
        yield Phase(
            "train",
            setup.settings.epochs,
            (optimiser(network.parameters(), setup.settings),),
            loss,
            begin=begin,
            robust=None if self.perturbation == "none" else check,
        )

    def objective(self, setup: Setup, network: Ensemble, batch: Batch) -> Terms:
        """The terms of the loss, on clean images or on clean and adversarial ones."""
        images, labels = batch.images, batch.labels
        views = 1
        if self.perturbation != "none":
            eps = drawn_eps(batch, self.eps_low, self.eps_high)
            made = crafted(setup, network, batch, inner_attack(self.perturbation), eps)
            images, labels, views = torch.cat([images, made]), torch.cat([labels, labels]), 2
        with setup.mixed():
            logits = network.member_logits(images)
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        size, classes = logits.shape[0] * logits.shape[1], logits.shape[2]
        each = labels.expand(len(logits), -1).reshape(size)
        cross = F.cross_entropy(logits.reshape(size, classes), each) * len(logits)
        probabilities = logits.softmax(2)
        return {
            "cross_entropy": views * cross,
            "entropy": -self.alpha * views * entropy(probabilities),
            "diversity": -self.beta * views * log_diversity(probabilities, labels),
        }

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The ensemble: log of the mean probability."""
        check_options(options, {})
        return parts["network"]

    def attack_views(self, parts: Parts, options: Mapping[str, str]) -> list[View]:
        """log F, and the mean of the members' logits, whose gradients do not saturate."""
        network = parts["network"]
        assert isinstance(network, Ensemble)
        return [View("log_mean_probability", network), View("mean_logits", MeanLogits(network))]


class Ensemble(nn.Module):
    """Images (N, C, H, W) to log of the members' mean probability (N, K)."""

    def __init__(self, members: list[nn.Module], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(1, *shape))

    def member_logits(self, images: Tensor) -> Tensor:
        """Logits (M, N, K) of all members."""
        centred = images - self.mean
        return torch.stack([member(centred) for member in self.members])

    @torch.no_grad()
    def start_at_mean(self, setup: Setup) -> None:
        """Take the mean training image as what is subtracted."""
        total, count = torch.zeros_like(self.mean, dtype=torch.float64), 0
        for images, _ in setup.examples():
            total += images.double().sum(0, keepdim=True)
            count += len(images)
        self.mean.copy_(total / max(count, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.member_logits(images)
        if logits.dtype == torch.bfloat16:
            logits = logits.float()  # a mean of probabilities loses too much in eight bits
        # log of a mean of softmaxes, without leaving the logarithm.
        return torch.logsumexp(logits.log_softmax(2), 0) - torch.tensor(len(logits)).log().item()


class MeanLogits(nn.Module):
    """The mean of the members' logits (N, K)."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, images: Tensor) -> Tensor:
        return self.ensemble.member_logits(images).mean(0)


def entropy(probabilities: Tensor) -> Tensor:
    """H of the mean prediction, averaged over the batch; probabilities (M, B, K)."""
    mean = probabilities.mean(0)
    return -(mean * (mean + FLOOR).log()).sum(1).mean()


def log_diversity(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of log det(U^T U + 1e-6 I); probabilities (M, B, K), labels (B,).

    In float64: the ridge is at the edge of float32.
    """
    members, size, classes = probabilities.shape
    wrong = torch.ones(size, classes, dtype=torch.bool, device=labels.device)
    wrong.scatter_(1, labels[:, None], False)
    rest = probabilities.double().transpose(0, 1)  # (B, M, K)
    rest = rest[wrong[:, None].expand(-1, members, -1)].view(size, members, classes - 1)
    directions = rest / rest.norm(dim=2, keepdim=True).clamp_min(1e-30)
    gram = directions @ directions.transpose(1, 2)
    ridge = RIDGE * torch.eye(members, dtype=gram.dtype, device=gram.device)
    return torch.logdet(gram + ridge).mean().to(probabilities.dtype)
