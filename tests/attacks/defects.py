"""What the tests of known defects share: settings, subjects, the points that an attack asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core import registry
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.outcome import Outcome
from robustbench_defenses.engine.twin import Twin
from tests.attacks import nets
from tests.attacks.test_properties import setting
from tests.engine import builders, oracles

EPS = {"linf": 0.12, "l2": 0.8, "l1": 3.0}
SHORT = {"steps": 3, "search_steps": 2, "n_queries": 6, "init_draws": 12, "init_blends": 8}
UNKNOWN = 10  # a class that no image has


def digits_setting(count: int = 100) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = nets.digits("test")
    return nets.trained(), images[:count], labels[:count]


def one_of(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64 and a single image with pixels at 0 and 1."""
    model, images, labels = setting(name, count=1)
    return model, images, labels


def short(name: str) -> dict[str, Any]:
    """Those of `SHORT` that the attack has."""
    known = {param.name for param in registry.find("attack", name).params}
    return {key: value for key, value in SHORT.items() if key in known}


def allowed(eps: float) -> Tensor:
    return largest_allowed(torch.tensor(eps).double())


def stored(folder: Path, images: Tensor, labels: Tensor) -> None:
    np.savez(folder / "set.npz", images=images.numpy(), labels=labels.numpy(), classes=10)


def talking(net: nn.Module) -> Logits:
    """`net` with one more class, which it never answers."""
    return lambda points: F.pad(net(points), (0, 1), value=-1000.0)


def wrong_at(model: Logits, point: Tensor, label: int) -> Logits:
    """`model`, but exactly at `point` misclassified."""

    def call(images: Tensor) -> Tensor:
        logits = model(images)
        there = (images == point).flatten(1).all(1)[:, None]
        other = F.one_hot(torch.tensor((label + 1) % logits.shape[1]), logits.shape[1])
        return torch.where(there, other.to(logits), logits)

    return call


def trail(
    attack: Any, model: Logits, images: Tensor, labels: Tensor, eps: float
) -> tuple[list[Tensor], Outcome]:
    """All points in order that a run on a single image asks about, those of the verdict last; one
    that breaks nothing has the last point of each of its runs judged."""
    search, judge = builders.Recorder(model), builders.Recorder(model)
    twin = Twin(search, search, autocast=False)
    options = {"twin": twin, "deployed": judge, "batch_size": 1}
    out = oracles.run(attack, model, images, labels, (eps,), **options)
    return [*torch.cat(search.asked), *torch.cat(judge.asked)], out


def chosen_points(points: list[Tensor], images: Tensor, norm: str, most: Tensor) -> list[int]:
    """The second, the middle and the last point of a trail that lies off the image, in the ball."""
    far = distance(torch.stack(points), images.expand(len(points), *images.shape[1:]), norm)
    first: dict[bytes, int] = {}  # a point that is asked again counts where it was asked first
    for place, point in enumerate(points):
        first.setdefault(point.numpy().tobytes(), place)
    inside = [place for place in first.values() if 0 < far[place] <= most]
    return sorted({inside[min(1, len(inside) - 1)], inside[len(inside) // 2], inside[-1]})
