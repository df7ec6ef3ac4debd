"""Are the subject's gradients worth following? Attacks that need none, and the gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ...attacks.gradient import uniform_start
from ...core import registry, rng
from ...core.norms import project
from ...core.view import View
from ...engine.craft import craft
from ...engine.guides import plain_rows
from ...engine.losses import rivals
from ...engine.twin import search_twin
from ..checks import Finding, Skip
from .probe import FEWER, SQUARE_IMAGES, SQUARE_QUERIES, Lacking, Probe, check, first

NOISE_DRAWS = 1000
TRANSFER_STEPS = 20
DIRECTIONS = 20
# Of the finite differences: far above float64 rounding, and within one linear piece of a ReLU
# network (1e-3 crosses enough of them to be 12 % off on a sound adversarially trained one).
STEP = 1e-5
ROUGHNESS_DRAWS = 100
ROUGHNESS = 4 / 255


@check(
    "D1",
    "black box beats white box",
    levels={"warning": ("images", 0.0), "error": ("images", 0.01)},
    unit="%",
    blames="gradients",
    formula="images that square (500 queries) breaks and no attack with gradients does (the one "
    "in question, margin loss, rescaled logits, three starts)",
    means="Who sees less cannot find more: the gradients are masked.",
    do="another loss, BPDA, EOT; more queries; report the worst case with square",
    passes=(501, 0),
    images=100,
    source="Athalye et al. 2018; Carlini et al. 2019; Croce and Hein 2020",
    cause="an attack that sees no gradients does better than those that do: they are masked",
)
def black_box(p: Probe) -> Finding | Skip:
    few = first(p.n, SQUARE_IMAGES)
    square = p.standing("square", among=few & p.white, n_queries=SQUARE_QUERIES)
    only = few & p.white & ~square
    value = float(only.sum() / few.sum())
    return Finding(
        value,
        f"square breaks {100 * value:.1f} % that {p.short} leaves standing, whatever its loss",
        p.numbers(only),
        n=int(few.sum()),
    )


@check(
    "D7",
    "logit scale",
    levels={"error": ("images", 0.01)},
    unit="points",
    blames="gradients",
    formula="accuracy - accuracy on logits divided by their median top-2 gap",
    means="Cross-entropy underflows: where 1 - p_y is 0 in float32, so is the gradient.",
    do="--set logit_scale=0.1, --set loss=margin, apgd_dlr, autoattack",
    passes=(42, 40),
    source="Carlini and Wagner 2017; Croce and Hein 2020",
    cause="its logits are so large that cross-entropy has no gradient left: attacks on it stall",
)
def logit_scale(p: Probe) -> Finding | Skip:
    try:
        scaled = p.standing(logit_scale=1 / p.gap)
    except Lacking as lacking:
        return Skip(str(lacking), p.n)
    drop = float(p.base.mean() - scaled.mean())
    sure = 1 - p.logits(p.images).softmax(1).gather(1, p.labels[:, None])[:, 0]
    return Finding(
        drop,
        f"{p.short} on rescaled logits: {100 * p.base.mean():.1f} % -> {100 * scaled.mean():.1f} % "
        f"(median margin {p.gap:.3g}, p_y is 1 for {100 * (sure < 1e-7).double().mean():.0f} %)",
        p.numbers(p.base & ~scaled),
    )


@check(
    "D9",
    "noise beats gradient",
    levels={"error": ("images", 0.0)},
    unit="%",
    blames="gradients",
    formula="images that 1,000 random points break (half uniform in the ball; half at its corners "
    "or, in L2 and L1, with random pixels at their farther bounds) and the attack does not",
    means="Blind guessing finds what the gradient does not: masking.",
    do="square, autoattack; look for what hides the gradient",
    passes=(1000, 0),
    images=50,
    source="Carlini et al. 2019",
    cause="blind guessing breaks what the gradients do not",
)
def noise(p: Probe) -> Finding | Skip:
    few = first(p.n, FEWER)
    where = torch.from_numpy((few & p.base).nonzero()[0]).to(p.labels.device)
    fell = np.zeros(p.n, dtype=bool)
    for draw in range(NOISE_DRAWS):
        if len(where) == 0:
            break
        points = _random_points(p, where, draw)
        p.cost.forward += len(where)
        with torch.no_grad():
            suspected = p.twin(points).argmax(1) != p.labels[where]
        hit = suspected.nonzero()[:, 0]
        if len(hit):  # the search twin's claims need a verdict
            sure = hit[p.counts(points[hit], where[hit])]
            fell[where[sure].cpu().numpy()] = True
            keep = torch.ones_like(suspected)
            keep[sure] = False
            where = where[keep]
    value = float(fell.sum() / few.sum())
    return Finding(
        value,
        f"{NOISE_DRAWS:,} random points break {100 * value:.1f} % that {p.short} leaves standing",
        p.numbers(fell),
        n=int(few.sum()),
    )


def _random_points(p: Probe, where: Tensor, draw: int) -> Tensor:
    """One random point (M, C, H, W) of the ball for the images at `where`: uniform in it at even
    draws, at odd ones far out."""
    images = p.images[where]
    key = rng.run_keys(p.seed, "noise", p.index[where], draw)
    eps = torch.full((len(where),), p.eps, dtype=images.dtype, device=images.device)
    if draw % 2 == 0:
        moved = uniform_start(
            replace(plain_rows(images, p.labels[where]), eps=eps, key=key), p.norm
        )
    else:
        moved = images + far_out(images, rng.uniform(key, tuple(images.shape[1:])), p.eps, p.norm)
    return project(moved, images, eps, p.norm)


def far_out(images: Tensor, noise: Tensor, eps: float, norm: str) -> Tensor:
    """Perturbations (M, C, H, W) that use the whole budget, drawn by `noise` in [0, 1).

    Linf: a corner of the ball. L2, L1: pixels in random order go to their farther bound until eps
    is used up (a dense direction would lose much of its length at the bounds of the box).
    """
    if norm == "linf":
        return eps * (noise - 0.5).sign()
    power = 2 if norm == "l2" else 1
    order = noise.flatten(1).argsort(1)
    far = torch.where(images < 0.5, 1 - images, -images).flatten(1).gather(1, order)
    cost = far.abs() ** power
    room = (eps**power - (cost.cumsum(1) - cost)).clamp_min(0)
    share = (room / cost.clamp_min(1e-12)).clamp_max(1) ** (1 / power)
    return torch.zeros_like(far).scatter_(1, order, far * share).view_as(images)


@check(
    "D10",
    "transfer beats white box",
    levels={"warning": ("images", 0.0), "error": ("images", 0.01)},
    unit="%",
    blames="gradients",
    formula="images that PGD-20 on another stored network breaks (the newest nt, the newest "
    "defended one) and no attack on the subject's own gradients does",
    means="Another network's gradients are better than its own: masking.",
    do="attack through the twin's gradients (--source SUBJECT); autoattack",
    passes=(42, 40),
    source="Athalye et al. 2018; Carlini et al. 2019",
    cause="images made on another network break it where its own gradients do not",
)
def transfer(p: Probe) -> Finding | Skip:
    sources = p.twins.sources()
    if not sources:
        return Skip("the results folder has no other network for these images", p.n)
    entry = registry.find("attack", f"pgd_{p.norm}")
    attack = entry.create(**entry.settings({"steps": TRANSFER_STEPS}))
    everyone = torch.arange(p.n, device=p.labels.device)
    worst, name = np.zeros(p.n, dtype=bool), sources[0][0]
    for source, network in sources:
        twin = search_twin(View("deployed", network), p.images, p.precision)
        points = craft(twin, attack, p.images, p.labels, p.eps)
        p.cost.forward += TRANSFER_STEPS * p.n
        p.cost.backward += TRANSFER_STEPS * p.n
        only = p.white & p.counts(points, everyone).cpu().numpy()
        if only.sum() >= worst.sum():
            worst, name = only, source
    p.used["transfer"] = None
    return Finding(
        float(worst.mean()),
        f"images made on {name} break {100 * worst.mean():.1f} % that no own gradient breaks",
        p.numbers(worst),
    )


@check(
    "D18",
    "gradient check",
    levels={"warning": 0.1},
    blames="gradients",
    formula="median relative difference of the margin's gradient and central differences (h = "
    "1e-5, float64) along 20 random sign vectors, 4/255 beside the image",
    also="error where they agree in sign in less than 80 % of the directions (two zeros do not)",
    means="The gradient is zero, shattered or wrong.",
    do="find what rounds, clips or draws; BPDA around it, or square",
    passes=(42, 1),
    images=50,
    source="Athalye et al. 2018",
    cause="the gradient is not that of the function: the subject is flat in steps, or its "
    "backward pass is not its own",
)
def gradient_check(p: Probe) -> Finding | Skip:
    module = p.subject.view(p.view).module
    few = min(FEWER, p.n)
    if module is None:
        return Skip("the subject is no module", few)
    if p.facts.random:
        return Skip("its answers are random: see D14", few)
    try:
        exact = copy.deepcopy(module).double().eval()
        found = _finite_differences(exact, _beside(p, few), p.labels[:few], p.seed)
    except Exception:  # a foreign module may refuse float64 in any way it likes
        return Skip("the subject cannot be computed in float64", few)
    p.cost.forward += (2 * DIRECTIONS + 2) * few
    p.cost.backward += few
    difference, product = found
    same = (difference.sign() == product.sign()) & (difference != 0)
    agree = float(same.double().mean())
    scale = difference.abs().clamp_min(1e-12)
    error = float(((difference - product).abs() / scale).median())
    if agree < 0.8:
        zero = float((product == 0).all(0).double().mean())
        note = f"; the gradient is exactly 0 for {100 * zero:.0f} % of the images" if zero else ""
        return Finding(
            1 - agree,
            f"gradient and finite differences disagree in {100 * (1 - agree):.0f} % of the "
            f"directions{note}",
            levels={"error": 0.2},
            n=few,
        )
    return Finding(
        error, f"gradient and finite differences differ by {100 * error:.1f} % (median)", n=few
    )


def _beside(p: Probe, few: int) -> Tensor:
    """Points (few, C, H, W) float64 within 4/255 of the images, inside the box.

    On flat parts of an image itself, pooling has ties, where no network is differentiable.
    """
    images = p.images[:few].double()
    key = rng.run_keys(p.seed, "beside", p.index[:few], 0)
    u = rng.uniform(key, tuple(images.shape[1:]), torch.float64) * 2 - 1
    return images + ROUGHNESS / 2 * (1 - 2 * images) + ROUGHNESS / 2 * u


def _finite_differences(
    module: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Central differences of the margin and the gradient's products (directions, N)."""
    few = torch.arange(len(labels), device=labels.device)
    with torch.no_grad():
        other = rivals(module(images), labels)[:, 0]

    def gap(points: Tensor) -> Tensor:
        logits: Tensor = module(points)
        return logits[few, other] - logits[few, labels]

    points = images.clone().requires_grad_()
    with torch.enable_grad():
        value = gap(points)
    gradient = torch.zeros_like(images)
    if value.requires_grad:
        (got,) = torch.autograd.grad(value.sum(), points, allow_unused=True)
        gradient = gradient if got is None else got
    differences, products = [], []
    with torch.no_grad():
        for direction in range(DIRECTIONS):
            key = rng.run_keys(seed, "direction", few, direction)
            u = (rng.uniform(key, tuple(images.shape[1:]), torch.float64) < 0.5).double() * 2 - 1
            differences.append((gap(images + STEP * u) - gap(images - STEP * u)) / (2 * STEP))
            products.append((gradient * u).flatten(1).sum(1))
    return torch.stack(differences), torch.stack(products)


@check(
    "D19",
    "local roughness",
    levels={"warning": 0.1, "error": 0.5},
    unit="%",
    blames="gradients",
    formula="mean over 100 draws of |m(x + u) - m(x) - g u| / |m(x)|, at most 1: m the margin, g "
    "its gradient, u uniform in +-4/255",
    means="Noise that nobody sees moves the logits otherwise than the gradient says.",
    do="average gradients over noise (EOT), more restarts",
    passes=(102, 1),
    images=50,
    source="Pintor et al. 2022, whose measure lacks g u: a smooth slope near its boundary is not "
    "rough",
    cause="its output jumps under noise that nobody sees, so single gradients say little",
)
def roughness(p: Probe) -> Finding | Skip:
    few, labels = p.images[:FEWER], p.labels[:FEWER]
    if p.facts.random:
        return Skip("its answers are random: see D14", len(few))
    points = few.clone().requires_grad_()
    with torch.enable_grad():
        slope = _margin(p.subject.view(p.view).logits(points), labels)
    gradient = torch.zeros_like(few)
    if slope.requires_grad:
        (got,) = torch.autograd.grad(slope.sum(), points, allow_unused=True)
        gradient = gradient if got is None else got
    p.cost.forward += len(few)
    p.cost.backward += len(few)
    base = _margin(p.logits(few), labels)
    changes = []
    for draw in range(ROUGHNESS_DRAWS):
        key = rng.run_keys(p.seed, "roughness", p.index[:FEWER], draw)
        u = (rng.uniform(key, tuple(few.shape[1:])) * 2 - 1) * ROUGHNESS
        moved = (few + u).clamp(0, 1)
        expected = (gradient * (moved - few)).flatten(1).sum(1)
        error = (_margin(p.logits(moved), labels) - base - expected).abs()
        changes.append((error / base.abs().clamp_min(1e-12)).clamp_max(1))
    value = float(torch.stack(changes).mean())
    return Finding(
        value,
        f"under noise of 4/255 the margin leaves its slope by {100 * value:.1f} % on average",
        n=len(few),
    )


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit above the largest other one (N,), of logits (N, K)."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)


@check(
    "D24",
    "unbounded attack",
    levels={"error": 0.0},
    unit="%",
    blames="gradients",
    formula="images that survive the attack, and a second start of it, at an eps whose ball is the "
    "whole box",
    means="Every image can become any other there: attack or gradient is broken.",
    do="check the attack on an undefended network; look for zero gradients (D6, D18)",
    passes=(41, 40),
    source="Pintor et al. 2022; Athalye et al. 2018",
    cause="attacks fail even where they may draw any image at all",
)
def unbounded(p: Probe) -> Finding | Skip:
    left = p.standing(eps=p.whole_box)
    if left.any():
        left = left & p.standing(eps=p.whole_box, seed=p.seed + 1, among=left)
    value = float(left.mean())
    return Finding(
        value,
        f"{100 * value:.1f} % survive an attack that may draw any image",
        p.numbers(left),
        eps=p.whole_box,
    )
