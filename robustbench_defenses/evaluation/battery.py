"""`--diagnose`: is this robustness real? A small declared budget of attacks and measurements.

On at most 200 images at one budget eps, PGD is compared with itself under other losses, scales,
steps and starts, with random noise and with Square, which needs no gradient; and the subject's own
gradients are measured. What any of the attacks breaks is broken: the worst case over them is an
upper bound on robustness. Sources: Carlini et al. 2019, Athalye et al. 2018, Croce and Hein 2020
(flags), Pintor et al. 2022 (indicators).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core import registry, rng
from ..core.norms import largest_allowed, project
from ..core.progress import Progress, Silent
from ..engine.caller import Cost
from ..engine.craft import craft
from ..engine.ensemble import search_for
from ..engine.losses import rivals
from ..engine.search import Block, Outcome
from ..engine.twin import Twin
from ..engine.verdict import Judge, evaluation_mode
from .diagnostics import skipped, tolerance, verdict
from .examples import Examples
from .schema import Diagnostic
from .subject import Subject

IMAGES = 200
FEWER = 64  # for measurements that cost many passes per image
NOISE_DRAWS = 100
SQUARE_QUERIES = 500

Bools = NDArray[np.bool_]


@dataclass
class Probe:
    """One diagnosis under way: what the checks share. Arrays have one entry per image."""

    subject: Subject
    twin: Twin
    images: Tensor
    labels: Tensor
    index: Tensor
    eps: float
    norm: str
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    cost: Cost = field(default_factory=Cost)
    distance: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    tried: dict[str, Bools] = field(default_factory=dict)

    def outcome(self, attack: Any, name: str, eps: float | None = None) -> Outcome:
        """A verdict run on all images; its successes at the probe's eps join the worst case."""
        budget = self.eps if eps is None else eps
        search = search_for(
            attack,
            enough=budget,
            twin=self.twin,
            deployed=self.subject.deployed,
            block=Block(
                self.images, self.labels, torch.full_like(self.labels, -1), self.index, (budget,)
            ),
            subject=self.subject.name,
            seed=self.seed,
            attack_name=name,
        )
        out: Outcome = search.run()
        self.cost.forward += out.cost.forward
        self.cost.backward += out.cost.backward
        found = out.distance.cpu().numpy()
        self.distance = np.minimum(self.distance, found) if len(self.distance) else found
        return out

    def standing(self, name: str, eps: float | None = None, **settings: object) -> Bools:
        """Images (N,) that survive a registered attack; each question is asked once."""
        key = f"{name}|{eps}|{sorted(settings.items())}"
        if key not in self.tried:
            entry = registry.find("attack", f"{name}_{self.norm}")
            out = self.outcome(entry.create(**entry.settings(settings)), entry.name, eps)
            limit = largest_allowed(torch.tensor(self.eps if eps is None else eps).double())
            self.tried[key] = (out.distance > limit).cpu().numpy()
        return self.tried[key]

    @property
    def base(self) -> Bools:
        """Images that survive PGD-40 on cross-entropy, one start: the attack under suspicion."""
        return self.standing("pgd")

    @property
    def left(self) -> float:
        """Share of the images that survive everything tried so far."""
        limit = float(largest_allowed(torch.tensor(self.eps).double()))
        return float((self.distance > limit).mean())

    def judge(self, batch_size: int = 1000) -> Judge:
        return Judge(self.subject.deployed, self.subject.name, self.index, self.cost, batch_size)

    def logits(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        """Float32 logits (M, K) of the deployed subject for the first M images' variants."""
        where = torch.arange(len(images), device=images.device)
        return self.judge(batch_size).logits(images, where)


Check = Callable[[Probe], Diagnostic]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check of the battery; they run in the order of this file."""
    CHECKS.append(function)
    return function


def diagnose(probe: Probe) -> list[Diagnostic]:
    """Every check's verdict; the probe then holds the worst case over all that was tried."""
    probe.progress.start(f"diagnose {probe.subject.name}", len(CHECKS))
    found = []
    with evaluation_mode(probe.subject.deployed):
        for done, function in enumerate(CHECKS):
            found.append(function(probe))
            probe.progress.update(done + 1, (function.__doc__ or "").partition(":")[2].strip())
    probe.progress.finish()
    return found


def probe_of(
    subject: Subject, examples: Examples, twin: Twin, eps: float, norm: str, seed: int
) -> Probe:
    """A probe of the first images of `examples`."""
    few = examples.head(IMAGES)
    return Probe(subject, twin, few.images, few.labels, few.index, eps, norm, seed)


def _only(weaker: Bools, stronger: Bools) -> Bools:
    """Images that survive `weaker` and fall to `stronger`."""
    return weaker & ~stronger


@check
def black_box(p: Probe) -> Diagnostic:
    """D1: black box beats white box"""
    n = len(p.labels)
    few = min(n, 100)
    square = np.ones(n, dtype=bool)
    part = Probe(
        p.subject, p.twin, p.images[:few], p.labels[:few], p.index[:few], p.eps, p.norm, p.seed,
        cost=p.cost,
    )  # fmt: skip
    square[:few] = part.standing("square", n_queries=SQUARE_QUERIES)
    white = p.base & p.standing("pgd", loss="margin")
    if len(p.distance):
        p.distance[:few] = np.minimum(p.distance[:few], part.distance)
    p.tried["square"] = square
    only = _only(white, square)[:few]
    value = float(only.mean())
    return verdict(
        "D1", "black box beats white box", value, 0.002, max(0.01, tolerance(few)),
        f"square, which sees no gradients, breaks {100 * value:.1f} % that pgd leaves standing",
        few, p.index[:few][torch.from_numpy(only).to(p.index.device)],
    )  # fmt: skip


@check
def steps(p: Probe) -> Diagnostic:
    """D2: step count"""
    more = p.standing("pgd", steps=80)
    change = float(p.base.mean() - more.mean())
    rise = -change
    limit = tolerance(len(p.labels))
    if rise > limit:
        return verdict(
            "D2", "step count", rise, None, limit,
            f"twice the steps leave {100 * rise:.1f} points more standing: the attack is broken",
            len(p.labels),
        )  # fmt: skip
    return verdict(
        "D2", "step count", change, 0.01, None,
        f"twice the steps leave {100 * change:.1f} points less standing", len(p.labels),
    )  # fmt: skip


@check
def monotone(p: Probe) -> Diagnostic:
    """D3: eps monotone"""
    larger = p.standing("pgd", eps=min(1.0, 1.5 * p.eps) if p.norm == "linf" else 1.5 * p.eps)
    only = larger & ~p.base
    value = float(only.mean())
    return verdict(
        "D3", "eps monotone", value, 0.002, max(0.01, tolerance(len(p.labels))),
        f"{100 * value:.1f} % break at eps {p.eps:g} and survive a larger one: the search fails",
        len(p.labels), _numbers(p, only),
    )  # fmt: skip


@check
def logit_scale(p: Probe) -> Diagnostic:
    """D7: logit scale"""
    top = p.logits(p.images).topk(2, dim=1).values
    gap = float((top[:, 0] - top[:, 1]).median().clamp_min(1e-12))
    scaled = p.standing("pgd", logit_scale=1 / gap)
    drop = float(p.base.mean() - scaled.mean())
    return verdict(
        "D7", "logit scale", drop, None, max(0.01, tolerance(len(p.labels))),
        f"pgd on rescaled logits: {100 * p.base.mean():.1f} % -> {100 * scaled.mean():.1f} % "
        f"(median margin {gap:.3g})",
        len(p.labels), _numbers(p, _only(p.base, scaled)),
    )  # fmt: skip


@check
def noise(p: Probe) -> Diagnostic:
    """D9: noise beats gradient"""
    survived = torch.ones(len(p.labels), dtype=torch.bool, device=p.labels.device)
    judge = p.judge()
    where = torch.arange(len(p.labels), device=p.labels.device)
    eps = torch.full((len(p.labels),), p.eps, dtype=torch.float64, device=p.labels.device)
    for draw in range(NOISE_DRAWS):
        key = rng.run_keys(p.seed, "noise", p.index, draw)
        unit = rng.uniform(key, tuple(p.images.shape[1:])) * 2 - 1
        if draw % 2:
            unit = unit.sign()  # the corners of the cube
        points = project(p.images + p.eps * unit, p.images, eps.to(p.images.dtype), p.norm)
        counts, _ = judge.judge(
            points, p.images, p.labels, torch.full_like(p.labels, -1), eps, p.norm, where
        )
        survived &= ~counts
    only = _only(p.base, survived.cpu().numpy())
    value = float(only.mean())
    return verdict(
        "D9", "noise beats gradient", value, None, tolerance(len(p.labels)),
        f"{NOISE_DRAWS} random points per image break {100 * value:.1f} % that pgd leaves standing",
        len(p.labels), _numbers(p, only),
    )  # fmt: skip


@check
def restarts(p: Probe) -> Diagnostic:
    """D11: restarts"""
    drop = float(p.base.mean() - p.standing("pgd", restarts=5).mean())
    return verdict(
        "D11", "restarts", drop, 0.01, 0.05,
        f"five starts instead of one leave {100 * drop:.1f} points less standing", len(p.labels),
    )  # fmt: skip


@check
def loss_choice(p: Probe) -> Diagnostic:
    """D12: loss choice"""
    other = p.standing("pgd", loss="margin")
    drop = float(p.base.mean() - other.mean())
    return verdict(
        "D12", "loss choice", drop, 0.02, None,
        f"the margin loss leaves {100 * drop:.1f} points less standing than cross-entropy",
        len(p.labels), _numbers(p, _only(p.base, other)),
    )  # fmt: skip


@check
def randomness(p: Probe) -> Diagnostic:
    """D14: randomness"""
    few = p.images[:FEWER]
    answers = torch.stack([nn.functional.normalize(p.logits(few), dim=1) for _ in range(5)])
    value = float((answers - answers[:1]).norm(dim=2).max())
    return verdict(
        "D14", "randomness", value, None, 1e-4,
        f"five passes over the same images differ by {value:.2g} (normalised logits): gradients "
        "need averaging over draws",
        len(few),
    )  # fmt: skip


@check
def precision(p: Probe) -> Diagnostic:
    """D15: precision"""
    entry = registry.find("attack", f"pgd_{p.norm}")
    points = craft(p.subject.views[0], entry.create(), p.images, p.labels, p.eps)
    whole = p.logits(points).argmax(1)
    flips = float((whole != p.logits(points, batch_size=7).argmax(1)).double().mean())
    rounded = p.logits((points * 255).round() / 255).argmax(1)
    wrong = whole != p.labels
    still = float((rounded != p.labels)[wrong].double().mean()) if bool(wrong.any()) else 1.0
    return verdict(
        "D15", "precision", flips, None, 0.001,
        f"{100 * flips:.1f} % of the verdicts change with the batch size; {100 * still:.0f} % of "
        "the adversarial images survive rounding to 8 bits",
        len(p.labels),
    )  # fmt: skip


@check
def gradient_check(p: Probe) -> Diagnostic:
    """D18: gradient check"""
    name = "gradient check"
    module = p.subject.views[0].module
    few = min(FEWER, len(p.labels))
    if module is None:
        return skipped("D18", name, few, "the subject is no module")
    try:
        exact = copy.deepcopy(module).double().eval()
        found = _finite_differences(exact, p.images[:few].double(), p.labels[:few], p.seed)
    except Exception:  # a foreign module may refuse float64 in any way it likes
        return skipped("D18", name, few, "the subject cannot be computed in float64")
    difference, product = found
    agree = float((difference.sign() == product.sign()).double().mean())
    scale = difference.abs().clamp_min(1e-12)
    error = float(((difference - product).abs() / scale).median())
    if agree < 0.8:
        return verdict(
            "D18", name, 1 - agree, None, 0.2,
            f"gradient and finite differences agree in sign for {100 * agree:.0f} % of the "
            "directions only: the gradient is shattered, zero or wrong",
            few,
        )  # fmt: skip
    return verdict(
        "D18", name, error, 0.1, None,
        f"gradient and finite differences differ by {100 * error:.1f} % (median)", few,
    )  # fmt: skip


def _finite_differences(
    module: nn.Module, images: Tensor, labels: Tensor, seed: int, directions: int = 20
) -> tuple[Tensor, Tensor]:
    """Central differences of the margin and the gradient's products (directions, N)."""
    step = 1e-5  # within one linear piece of a ReLU network, and far above float64 rounding
    few = torch.arange(len(labels), device=labels.device)
    other = rivals(module(images).detach(), labels)[:, 0]

    def gap(points: Tensor) -> Tensor:
        logits: Tensor = module(points)
        return logits[few, other] - logits[few, labels]

    points = images.clone().requires_grad_()
    value = gap(points)
    gradient = torch.zeros_like(images)
    if value.requires_grad:
        (got,) = torch.autograd.grad(value.sum(), points, allow_unused=True)
        gradient = gradient if got is None else got
    differences, products = [], []
    with torch.no_grad():
        for direction in range(directions):
            key = rng.run_keys(seed, "direction", few, direction)
            u = (rng.uniform(key, tuple(images.shape[1:]), torch.float64) < 0.5).double() * 2 - 1
            differences.append((gap(images + step * u) - gap(images - step * u)) / (2 * step))
            products.append((gradient * u).flatten(1).sum(1))
    return torch.stack(differences), torch.stack(products)


@check
def roughness(p: Probe) -> Diagnostic:
    """D19: local roughness"""
    few = p.images[:FEWER]
    labels = p.labels[:FEWER]

    def loss(images: Tensor) -> Tensor:
        return nn.functional.cross_entropy(p.logits(images), labels, reduction="none")

    base = loss(few)
    changes = []
    for draw in range(20):
        key = rng.run_keys(p.seed, "roughness", p.index[:FEWER], draw)
        u = (rng.uniform(key, tuple(few.shape[1:])) * 2 - 1) * (4 / 255)
        changes.append(
            ((loss((few + u).clamp(0, 1)) - base).abs() / (base.abs() + 1e-3)).clamp_max(1)
        )
    value = float(torch.stack(changes).mean())
    return verdict(
        "D19", "local roughness", value, None, 0.5,
        f"noise of 4/255 changes the loss by {100 * value:.0f} % on average", len(few),
    )  # fmt: skip


@check
def unbounded(p: Probe) -> Diagnostic:
    """D24: unbounded attack"""
    if p.norm != "linf":
        return skipped("D24", "unbounded attack", 0, "asked in Linf only")
    left = p.standing("pgd", eps=1.0)
    value = float(left.mean())
    return verdict(
        "D24", "unbounded attack", value, None, 0.0,
        f"{100 * value:.1f} % survive an attack that may draw any image: attack or gradient fails",
        len(p.labels), _numbers(p, left),
    )  # fmt: skip


@check
def forward_loop(p: Probe) -> Diagnostic:
    """D26: forward loop"""
    calls = 0
    real = torch.autograd.grad

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args, **named)

    torch.autograd.grad = counted
    try:
        p.logits(p.images[:1])
    finally:
        torch.autograd.grad = real
    return verdict(
        "D26", "forward loop", float(calls), 0.0, None,
        f"the subject calls autograd {calls} times in a forward pass: it optimises at test time",
        1,
    )  # fmt: skip


@check
def repeat(p: Probe) -> Diagnostic:
    """D31: repeat"""
    entry = registry.find("attack", f"pgd_{p.norm}")
    again = p.outcome(entry.create(), entry.name)
    limit = largest_allowed(torch.tensor(p.eps).double())
    differs = p.base != (again.distance > limit).cpu().numpy()
    value = float(differs.mean())
    return verdict(
        "D31", "repeat", value, None, 0.0,
        f"the same attack with the same seed decides {100 * value:.1f} % of the images otherwise",
        len(p.labels), _numbers(p, differs),
    )  # fmt: skip


def _numbers(p: Probe, chosen: Bools) -> Tensor:
    """The numbers in the test set of the chosen images."""
    return p.index[torch.from_numpy(chosen).to(p.index.device)]
