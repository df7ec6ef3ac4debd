"""Adversarial training with a triplet loss on embeddings.

The adversarial image is the anchor, pulled towards a clean image p of its class and pushed from a
clean image n of another. `triplet` is AT2L (Li et al. 2019) as far as it is known, with everything
unsaid filled in (assumptions):

    LOSS = CE(x) + CE(x') + lam mean_i max( d(e(x'_i), e(p_i)) - d(e(x'_i), e(n_i)) + m, 0 )

e: logits; d: Euclidean; p, n: the farthest image of the class and the nearest of another one in the
batch; x': FGSM. `tla` is triplet loss adversarial training (Mao et al. 2019, eq. 2 to 4):

    D(u, v) = 1 - |u . v| / (|u| |v|)
    TRIP    = mean_i max( D(e(x'_i), e(p_i)) - D(e(x'_i), e(n_i)) + m, 0 ) + r mean(a^2 + p^2 + n^2)
    LOSS    = CE(x') + lam sum over kinds of positive TRIP

e: the last tap; p: another clean image of the class (A1), or the clean image with uniform noise
(A); n: the clean image of another class with the largest cosine in the batch; x': PGD.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks.pgd import PGD
from ..core import rng
from .base import Batch, Parts, Phase, RobustCheck, Setup, Terms, check_options, optimiser
from .inner import check_interval, crafted, drawn_eps, inner_attack

CARD = {
    "object": "Triplet",
    "version": 1,
    "source": "Li et al. 2019 (AT2L); tla: Mao et al. 2019, equations 2 to 4",
    "variants": {
        "tla": {
            "set": {
                "form": "tla",
                "perturbation": "pgd",
                "eps_low": 0.3,
                "margin": 0.05,
                "embedding": "features",
            },
            "summary": "Triplet loss adversarial training (TLA) on PGD images",
            "datasets": {
                "cifar10": {
                    "eps_low": "8/255",
                    "eps_high": "8/255",
                    "weight": 2,
                    "margin": 0.03,
                    "shrink": 0.001,
                    "noisy_positive": True,
                },
            },
        },
    },
    "models": {"digits": "lenet", "mnist": "cnn6", "fashion_mnist": "cnn6", "*": "resnet18"},
    "params": {
        "form": {"help": "AT2L's loss or TLA's"},
        "perturbation": {"help": "how the anchors are made"},
        "eps_low": {"unit": "pixel units", "min": 0, "max": 1},
        "eps_high": {"unit": "pixel units", "min": 0, "max": 1, "papers": {"tla mnist": 0.3}},
        "steps": {"unit": "iterations", "min": 1, "help": "of PGD", "papers": {"tla mnist": 40}},
        "weight": {"min": 0, "help": "lam", "papers": {"tla mnist": 0.5, "tla cifar10": 2}},
        "margin": {"min": 0, "help": "m", "papers": {"tla mnist": 0.05, "tla cifar10": 0.03}},
        "shrink": {
            "min": 0,
            "help": "r: weight of the embeddings' squares (TLA)",
            "papers": {"tla mnist": 0.0001, "tla cifar10": 0.001},
        },
        "embedding": {"help": "e: the logits, or the last tap"},
        "noisy_positive": {"help": "TLA: also the clean image with noise as a positive (A)"},
    },
    "datasets": {
        "cifar10": {"eps_low": 0.01, "eps_high": 0.05},
        "cifar100": {"eps_low": 0.01, "eps_high": 0.05},
        "svhn": {"eps_low": 0.01, "eps_high": 0.05},
    },
    "presets": {
        "*": {"schedule": "multistep", "milestones": "0.375,0.75"},
        "smoke": {"epochs": 3, "batch_size": 64, "steps": 3, "model.width": 8},
        "quick": {"epochs": 6, "batch_size": 128, "steps": 7, "model.width": 16},
        "quick:digits": {"epochs": 20, "batch_size": 64, "model.width": 32},
        "short": {"epochs": 30, "batch_size": 128},
        "paper": {"epochs": 40, "batch_size": 64, "validation": 0, "steps": 40},
        "paper:cifar10": {"epochs": 180, "milestones": "4/9,2/3,8/9", "steps": 7},
    },
}


@dataclass(frozen=True)
class Triplet:
    form: Literal["at2l", "tla"] = "at2l"
    perturbation: Literal["fgsm", "bim", "pgd"] = "fgsm"
    eps_low: float = 0.1
    eps_high: float = 0.3
    steps: int = 10
    weight: float = 0.5
    margin: float = 1.0
    shrink: float = 0.0001
    embedding: Literal["logits", "features"] = "logits"
    noisy_positive: bool = False

    def __post_init__(self) -> None:
        check_interval(self.eps_low, self.eps_high)

    def parts(self, setup: Setup) -> Parts:
        """The network alone."""
        return {"network": setup.model()}

    def phases(self, setup: Setup, parts: Parts) -> Iterator[Phase]:
        """One phase; the best checkpoint is chosen by accuracy under PGD-10."""
        network = parts["network"]

        def loss(batch: Batch) -> Terms:
            return self.objective(setup, network, batch)

        yield Phase(
            "train",
            setup.settings.epochs,
            (optimiser(network.parameters(), setup.settings),),
            loss,
            robust=RobustCheck(PGD(steps=10, rel_step=0.25), self.eps_high),
        )

    def objective(self, setup: Setup, network: nn.Module, batch: Batch) -> Terms:
        """The terms of the form in use, over one pass of clean and adversarial images."""
        labels, size = batch.labels, len(batch.labels)
        eps = drawn_eps(batch, self.eps_low, self.eps_high)
        anchors = crafted(setup, network, batch, inner_attack(self.perturbation, self.steps), eps)
        parts = [batch.images, anchors]
        if self.noisy_positive:
            noise = 2 * rng.uniform(batch.keys("noise"), tuple(batch.images.shape[1:])) - 1
            parts.append((batch.images + eps * noise).clamp(0, 1))
        logits, features = self._embedded(setup, network, torch.cat(parts))
        clean, anchor = features[:size], features[size : 2 * size]
        terms: Terms = {}
        if self.form == "at2l":
            terms["cross_entropy"] = F.cross_entropy(logits[:size], labels)
        terms["adversarial_cross_entropy"] = F.cross_entropy(logits[size : 2 * size], labels)
        if self.form == "at2l":
            terms["triplet"] = self.weight * hardest_triplets(anchor, clean, labels, self.margin)
            return terms
        other = another_of_class(labels, batch.keys("positive"))
        kinds = [(clean[other.clamp_min(0)], other >= 0)]
        if self.noisy_positive:
            kinds.append((features[2 * size :], torch.ones_like(labels, dtype=torch.bool)))
        total = anchor.new_zeros(())
        for positive, there in kinds:
            total = total + cosine_triplets(
                anchor, positive, clean, labels, there, self.margin, self.shrink
            )
        terms["triplet"] = self.weight * total
        return terms

    def _embedded(self, setup: Setup, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and embeddings (N, d)."""
        if self.embedding == "logits":
            logits = setup.forward(network, images)
            return logits, logits
        taps = setup.tapped(network, images)
        last = [name for name in taps if name != "logits"][-1]
        return taps["logits"], taps[last].flatten(1)

    def deployed(self, parts: Parts, options: Mapping[str, str]) -> nn.Module:
        """The network."""
        check_options(options, {})
        return parts["network"]


def hardest_triplets(anchor: Tensor, clean: Tensor, labels: Tensor, margin: float) -> Tensor:
    """AT2L's term: anchors and clean images (B, d), labels (B,); a scalar.

    Positive: the farthest clean image of the class, not the anchor's own; negative: the nearest of
    another class. Anchors that lack one of them are left out.
    """
    apart = torch.cdist(anchor, clean, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels[None]
    own = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = apart.masked_fill(~same | own, -torch.inf).amax(1)
    negative = apart.masked_fill(same, torch.inf).amin(1)
    whole = torch.isfinite(positive) & torch.isfinite(negative)
    if not bool(whole.any()):
        return apart.sum() * 0
    return (positive[whole] - negative[whole] + margin).clamp_min(0).mean()


def cosine_triplets(
    anchor: Tensor, positive: Tensor, clean: Tensor, labels: Tensor, there: Tensor,
    margin: float, shrink: float,
) -> Tensor:  # fmt: skip
    """TRIP of TLA: all (B, d); `there` (B,) bool: anchors that have a positive; a scalar.

    The negative is the clean image of another class with the largest cosine to the anchor.
    """
    with torch.no_grad():
        cosines = F.normalize(anchor, dim=1) @ F.normalize(clean, dim=1).T
        same = labels[:, None] == labels[None]
        cosines = cosines.masked_fill(same, -torch.inf)
        chosen = cosines.argmax(1)
        there = there & torch.isfinite(cosines.amax(1))
    if not bool(there.any()):
        return anchor.sum() * 0
    a, p, n = anchor[there], positive[there], clean[chosen[there]]
    pulled = absolute_cosine_distance(a, p)
    pushed = absolute_cosine_distance(a, n)
    size = (a.square() + p.square() + n.square()).mean()
    return (pulled - pushed + margin).clamp_min(0).mean() + shrink * size


def absolute_cosine_distance(u: Tensor, v: Tensor) -> Tensor:
    """D(u, v) = 1 - |u . v| / (|u| |v|) of rows (B, d); (B,). Opposite vectors count as equal."""
    return 1 - F.cosine_similarity(u, v, dim=1).abs()


def another_of_class(labels: Tensor, keys: Tensor) -> Tensor:
    """For each row a random other row of its class, -1 where there is none; (B,) int64.

    `keys` (B,) int32 are the rows' randomness.
    """
    same = labels[:, None] == labels[None]
    same &= ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    order = rng.uniform(keys, (len(labels),))
    chosen = order.masked_fill(~same, -1.0).argmax(1)
    return torch.where(same.any(1), chosen, -1)
