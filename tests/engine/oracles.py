"""Small subjects whose nearest adversarial points have closed forms, and ways to run attacks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_defenses.core import registry
from robustbench_defenses.core.view import Logits, View
from robustbench_defenses.engine.ensemble import search_for
from robustbench_defenses.engine.search import Block, Outcome
from robustbench_defenses.engine.twin import search_twin

DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


class Linear(nn.Module):
    """Z = W x + b: the distance to the boundary of class k is (Z_y - Z_k) / ||w_y - w_k||_dual."""

    def __init__(self, shape: tuple[int, ...], classes: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = torch.Size(shape).numel()
        self.weight = nn.Parameter(torch.randn(classes, size, generator=generator).double())
        self.bias = nn.Parameter(torch.randn(classes, generator=generator).double() * 0.1)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).to(self.weight) @ self.weight.T + self.bias

    def distances(self, images: Tensor, labels: Tensor, norm: str) -> Tensor:
        """Distance (N,) to the nearest boundary, while the box is inactive."""
        with torch.no_grad():
            logits = self(images)
            gap = logits.gather(1, labels[:, None]) - logits  # (N, K)
            slope = (self.weight[labels][:, None] - self.weight).norm(p=DUAL[norm], dim=2)
            ratio = gap / slope.clamp_min(1e-30)
            ratio[torch.arange(len(labels)), labels] = torch.inf
            return ratio.amin(1)


class Constant(nn.Module):
    """The same logits for every image, class 0 ahead; its input gradient is exactly zero."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        logits = (
            images.new_zeros((len(images), self.classes)) + 0 * images.flatten(1).sum(1)[:, None]
        )
        return logits + torch.eye(self.classes, dtype=images.dtype)[0]


def convolution(channels: int, classes: int, seed: int = 0) -> nn.Module:
    """A tiny random network with curvature, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(96, classes),
        )
        net[5].weight.data *= 8
    return net.double().eval()


def middle_images(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Images around 0.5 in float64: small budgets never meet the box."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 0.1 * (torch.rand(count, *shape, generator=generator).double() - 0.5)


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def attacks() -> list[str]:
    """Every registered attack and variant; of names that mean equal parameters the first."""
    names: dict[Any, str] = {}
    for entry in registry.entries("attack"):
        names.setdefault(entry.create(), entry.name)
    return list(names.values())


def build(name: str, **settings: Any) -> Any:
    """An attack by name, with those of `settings` that it has."""
    entry = registry.find("attack", name)
    known = {param.name for param in entry.params}
    return entry.create(**{key: value for key, value in settings.items() if key in known})


def quick_steps(name: str) -> dict[str, int]:
    """The number of steps at the quick budget, where the attack's card names one."""
    quick = (registry.find("attack", name).card.get("budgets") or {}).get("quick", {})
    return {key: value for key, value in quick.get("set", {}).items() if key == "steps"}


def run(
    attack: Any,
    model: Logits,
    images: Tensor,
    labels: Tensor,
    grid: tuple[float, ...],
    **options: Any,
) -> Outcome:
    """A verdict run; options: sweep, target, numbers, batch_size, seed, precision, twin, deployed,
    name, enough, pool, keep_points."""
    target = options.get("target")
    block = Block(
        images=images,
        labels=labels,
        target=torch.full_like(labels, -1) if target is None else target,
        numbers=options.get("numbers", torch.arange(len(labels))),
        grid=grid,
        sweep=options.get("sweep", "envelope"),
        pool=options.get("pool"),
    )
    twin = options.get("twin") or search_twin(
        View("test", model), images, options.get("precision", "fp32")
    )
    return search_for(
        attack,
        enough=options.get("enough", 0.0),
        twin=twin,
        deployed=options.get("deployed", model),
        block=block,
        seed=options.get("seed", 0),
        attack_name=options.get("name", "attack"),
        batch_size=options.get("batch_size", 256),
        keep_points=options.get("keep_points", False),
    ).run()
