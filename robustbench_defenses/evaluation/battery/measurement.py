"""Is the right thing measured? Randomness, precision, the pipeline as a whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...core.view import View
from ...engine.ensemble import search_for
from ...engine.search import Block
from ...engine.twin import search_twin
from ..checks import Finding, Skip
from .probe import FEWER, Probe, alive, check

PASSES = 5
# Budgets at which an undefended network has nothing left.
STANDARD = {
    ("digits", "linf"): 0.3,
    ("mnist", "linf"): 0.3,
    ("fashion_mnist", "linf"): 0.3,
    ("svhn", "linf"): 8 / 255,
    ("cifar10", "linf"): 8 / 255,
    ("cifar100", "linf"): 8 / 255,
}


@check(
    "D14",
    "randomness",
    levels={"error": 1e-4},
    blames="measurement",
    formula="largest L2 difference of normalised logits over 5 passes of the same images",
    also="info where the subject says that it is random and the attack averages over draws",
    means="Random answers: a single pass decides nothing, and single gradients mislead.",
    do="average gradients over draws (EOT) and judge over fresh draws; fix the seed",
    passes=(5, 0),
    images=50,
    source="Croce and Hein 2020 (flag of AutoAttack)",
    cause="its answers are random, and the attack did not average over them",
)
def randomness(p: Probe) -> Finding | Skip:
    few = p.images[:FEWER]
    if p.facts.random:  # its answer is the same for the same seed: what differs are single draws
        where = torch.arange(len(few), device=few.device)
        passes = list(p.judge().draws(few, where)[:PASSES])
    else:
        passes = [p.logits(few) for _ in range(PASSES)]
    answers = torch.stack([nn.functional.normalize(one, dim=1) for one in passes])
    apart = (answers[:, None] - answers[None]).norm(dim=3).max()
    return Finding(
        float(apart),
        f"{PASSES} passes over the same images differ by {float(apart):.2g} (normalised logits)",
        levels={"info": 1e-4} if p.twin.randomness is not None else None,
        n=len(few),
    )


@check(
    "D15",
    "precision",
    levels={"error": 0.001},
    unit="%",
    blames="measurement",
    formula="adversarial images that another batch size in float32 no longer misclassifies",
    means="The verdict hangs on rounding. How many survive 8-bit rounding is told for information.",
    do="--precision fp32; on a GPU without TF32",
    passes=(3, 0),
    source="Carlini et al. 2019",
    cause="its verdicts change with the batch size: they hang on rounding",
)
def precision(p: Probe) -> Finding | Skip:
    if p.facts.random:
        return Skip("its answers are random: see D14", p.n)
    out = p.suspect[0]
    assert out.points is not None
    fallen = (torch.isfinite(out.distance) & (out.distance > 0)).nonzero()[:, 0]
    if len(fallen) == 0:
        return Skip("the attack broke no image")
    points, labels = out.points[fallen], p.labels[fallen]
    judge = p.judge(batch_size=7)
    right = judge.logits(points, fallen).argmax(1) == labels
    rounded = p.judge().logits((points * 255).round() / 255, fallen).argmax(1) != labels
    flips, still = float(right.double().mean()), float(rounded.double().mean())
    return Finding(
        flips,
        f"{100 * flips:.1f} % of the adversarial images depend on the batch size; "
        f"{100 * still:.0f} % survive rounding to 8 bits",
        p.index[fallen[right]],
        n=len(fallen),
    )


@check(
    "D25",
    "undefended twin",
    levels={"error": 0.02},
    unit="%",
    blames="attack",
    formula="accuracy that the same attack leaves the newest stored nt run at the standard eps "
    "(digits, MNIST 0.3, CIFAR 8/255)",
    means="An attack that cannot break an undefended network measures nothing.",
    do="mend the attack before you look at defenses",
    passes=(41, 40),
    source="Carlini et al. 2019",
    cause="the same attack does not even break an undefended network",
)
def undefended(p: Probe) -> Finding | Skip:
    eps = STANDARD.get((p.examples.info.name, p.norm))
    if eps is None:
        return Skip("no standard budget for this data set and norm", p.n)
    found = p.twins.undefended()
    if found is None and p.subject.about.defense == "nt":
        found = (p.subject.name, p.subject.deployed)  # type: ignore[assignment]
    if found is None:
        return Skip("the results folder has no undefended run (rrd train nt)", p.n)
    name, network = found
    out = search_for(
        p.question.attack,
        twin=search_twin(View("deployed", network), p.images, p.precision),
        deployed=network,
        block=Block(p.images, p.labels, torch.full_like(p.labels, -1), p.index, (eps,)),
        subject=name,
        seed=p.seed,
        attack_name=p.attack,
    ).run()
    p.cost.forward += out.cost.forward
    p.cost.backward += out.cost.backward
    left = alive(out, eps)
    return Finding(
        float(left.mean()),
        f"{p.short} leaves {name} {100 * left.mean():.1f} % at eps {eps:.3g}",
        p.numbers(left),
        eps=eps,
    )


@check(
    "D26",
    "forward loop",
    levels={"warning": 0.0},
    blames="measurement",
    formula="calls of autograd during one forward pass",
    means="The subject optimises at test time; attacks do not see through the loop.",
    do="BPDA around the loop, unroll it, or attack its latent variable",
    passes=(1, 0),
    images=1,
    source="Croce and Hein 2020 (flag of AutoAttack)",
    cause="it optimises at test time, and the attack did not see through that",
)
def forward_loop(p: Probe) -> Finding | Skip:
    calls = 0
    real = {name: getattr(torch.autograd, name) for name in ("grad", "backward")}

    def counted(name: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            return real[name](*args, **named)

        return call

    try:
        for name in real:
            setattr(torch.autograd, name, counted(name))
        p.logits(p.images[:1])
    finally:
        for name, function in real.items():
            setattr(torch.autograd, name, function)
    return Finding(float(calls), f"the subject calls autograd {calls} times in a forward pass", n=1)
