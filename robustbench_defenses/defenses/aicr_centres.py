"""AICR's class centres: the module, the rule that deploys them, their start, their geometry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .aicr_losses import distances
from .base import Parts, Setup


def key_of(tap: str) -> str:
    """A tap's name as torch accepts it for a parameter: without dots."""
    return tap.replace(".", "/")


class Centres(nn.Module):
    """One centre per class and tap, started at N(0, 1): parameters (K, d) by tap name."""

    def __init__(self, widths: dict[str, int], classes: int) -> None:
        super().__init__()
        self.names = list(widths)
        self.points = nn.ParameterDict(
            {
                key_of(name): nn.Parameter(torch.randn(classes, width))
                for name, width in widths.items()
            }
        )

    def of(self, name: str) -> Tensor:
        """The centres (K, d) of one tap."""
        points: Tensor = self.points[key_of(name)]
        return points


class NearestCentre(nn.Module):
    """Equation 9 as scores: z_k = -|h - c_k|^2 at one tap; images (N, C, H, W) to (N, K)."""

    def __init__(self, network: nn.Module, centres: Centres, tap: str) -> None:
        super().__init__()
        self.network, self.centres, self.tap = network, centres, tap
        self.tap_names: tuple[str, ...] = tuple(network.tap_names)  # type: ignore[arg-type]

    def tapped(self, images: Tensor) -> dict[str, Tensor]:
        """The network's taps, with the scores as `logits`."""
        taps: dict[str, Tensor] = self.network.tapped(images)  # type: ignore[operator]
        features = taps[self.tap].flatten(1)
        scores = -distances(features, self.centres.of(self.tap).to(features.dtype), squared=True)
        return {**taps, "logits": scores}

    def forward(self, images: Tensor) -> Tensor:
        return self.tapped(images)["logits"]


@torch.no_grad()
def start_at_class_means(setup: Setup, parts: Parts) -> None:
    """Put the attractive centres at the class means of the training images' features.

    Centres at N(0, 1) lie far from the features of stage 1, and the squared pull towards them
    destroys what stage 1 learnt. A class without images keeps its random centre.
    """
    network, centres = parts["network"], parts["centres"]
    assert isinstance(centres, Centres)
    network.eval()
    sums = {name: torch.zeros_like(centres.of(name), dtype=torch.float64) for name in centres.names}
    counts = torch.zeros(setup.classes, dtype=torch.float64, device=setup.device)
    for images, labels in setup.examples():
        taps = setup.tapped(network, images)
        counts += torch.bincount(labels, minlength=setup.classes)
        for name, total in sums.items():
            total.index_add_(0, labels, taps[name].flatten(1).double())
    seen = counts > 0
    for name, total in sums.items():
        centres.of(name)[seen] = (total[seen] / counts[seen, None]).to(centres.of(name).dtype)


@torch.no_grad()
def geometry(setup: Setup, parts: Parts, images: Tensor, labels: Tensor) -> dict[str, float]:
    """What tells a healthy run from a collapsed one, on held-out images (N, C, H, W).

    Per tap: mean feature norm, mean distance between attractive centres, mean norm of the repulsive
    ones, nearest-centre accuracy; and the median logit margin.
    """
    taps = setup.tapped(parts["network"], images)
    centres, repulsive = parts["centres"], parts.get("repulsive")
    assert isinstance(centres, Centres)
    logits = taps["logits"]
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    found = {"margin": (own - others).median().item()}
    for name in centres.names:
        features, points = taps[name].flatten(1), centres.of(name)
        nearest = distances(features, points, squared=True).argmin(1)
        found[f"feature_norm.{name}"] = features.norm(dim=1).mean().item()
        found[f"centre_distance.{name}"] = F.pdist(points).mean().item()
        found[f"nearest_centre.{name}"] = (nearest == labels).double().mean().item()
        if isinstance(repulsive, Centres):
            found[f"repulsive_norm.{name}"] = repulsive.of(name).norm(dim=1).mean().item()
    return found
