"""Is this number robustness, or a weak attack? The checks that see every stored result.

They cost nothing but one pass or two: each is a function of the `Evidence` that an evaluation
leaves anyway. A check that cannot run says so; none is silently absent. Sources: Carlini et al.
2019, Athalye et al. 2018, Croce and Hein 2020 (flags of AutoAttack).
"""

from __future__ import annotations

import numpy as np

from . import metrics
from .checks import Check, Finding, Skip, registrar, tolerance
from .evidence import Evidence, evidence_arrays, survivors
from .schema import Diagnostic

# Best robust accuracy that stood up to AutoAttack: (data set, norm) -> (eps, accuracy). MNIST: the
# list of the AutoAttack authors; CIFAR-10: Bartoldson et al. 2024 on RobustBench.
BEST_KNOWN = {("mnist", "linf"): (0.3, 0.9634), ("cifar10", "linf"): (8 / 255, 0.7371)}
# A network trained at a large Linf eps is past its reach at a third more: at 0.5 all is lost.
STEEP_EPS = 0.2

__all__ = ["CHECKS", "Evidence", "evidence_arrays", "run_checks", "survivors", "tolerance"]


CHECKS: list[Check[Evidence]] = []
check = registrar(CHECKS)


def run_checks(evidence: Evidence) -> list[Diagnostic]:
    """Every check's verdict on the evidence."""
    return [one(evidence) for one in CHECKS]


@check(
    "D4",
    "large eps",
    levels={},
    unit="%",
    blames="gradients",
    formula="accuracy at Linf 0.5, where the grid reaches that far; under --diagnose also where it "
    "does not, and at L2 9 on images of 28x28; of a minimum-norm attack what it never broke",
    also="error > the share of the largest class (at least 1/classes) + 3 standard errors",
    passes=(41, 40),
    means="At Linf 0.5 every image can become the same grey: what survives was not found.",
    do="a stronger attack: more steps and restarts, another loss, no gradients (square)",
    source="Carlini et al. 2019",
    cause="images survive a budget at which every image can become the same grey",
)
def large_eps(e: Evidence) -> Finding | Skip:
    large = [eps for eps in e.grid if eps >= 0.5]
    if e.norm == "l2":
        large = [eps for eps in e.grid if eps >= 9]
    if e.unbounded:
        large = [np.inf]
    elif e.norm not in ("linf", "l2") or not large:
        return Skip("no untargeted Linf budget of 0.5 or more", e.n)
    if e.targeted:
        return Skip("a targeted attack", e.n)
    if e.transfer:
        return Skip("transferred images bound nothing", e.n)
    share = float(np.bincount(e.record.label).max()) / e.n
    chance = max(1 / e.classes, share)
    limit = chance + 3 * float(np.sqrt(chance * (1 - chance) / e.n))
    left = np.isinf(e.record.distance) if e.unbounded else e.robust(large[0])
    value = float(left.mean())
    where = "a search at any distance" if e.unbounded else f"eps {large[0]:g}"
    return Finding(
        value,
        f"{100 * value:.1f} % survive {where}, where no classifier keeps more than "
        f"{100 * chance:.1f} %",
        e.record.index[left],
        levels={"error": limit},
        eps=None if e.unbounded else large[0],
    )


@check(
    "D5",
    "one step beats many",
    levels={"warning": ("images", 0.0), "error": ("images", 0.01)},
    unit="%",
    blames="attack",
    formula="images that fgsm breaks and the attack leaves standing, at equal eps",
    means="One step cannot do more than many: the gradients mislead, or the attack is broken.",
    do="more restarts, smaller steps, another loss; check the attack on an undefended network",
    passes=(2, 1),
    source="Athalye et al. 2018",
    cause="one step of gradient does more than many: the gradients are masked, or the attack is "
    "broken",
)
def one_step(e: Evidence) -> Finding | Skip:
    if e.attack.startswith("fgsm"):
        return Skip("this is the one-step attack", e.n)
    if e.transfer:
        return Skip("transferred images: one step may well carry over better than many", e.n)
    if e.one_step is None or not np.array_equal(e.one_step.index, e.record.index):
        return Skip("no fgsm result on the same examples", e.n)
    worst, eps, found = 0.0, e.grid[0], np.zeros(e.n, dtype=bool)
    known = e.grid if e.one_step.eps is None else [x for x in e.grid if x in e.one_step.eps]
    for point in known:
        only = e.robust(point) & ~survivors(e.one_step, point)
        if float(only.mean()) >= worst:
            worst, eps, found = float(only.mean()), point, only
    return Finding(
        worst,
        f"fgsm breaks {100 * worst:.1f} % of the examples that {e.attack} leaves at eps {eps:g}",
        e.record.index[found],
        eps=eps,
    )


@check(
    "D6",
    "zero gradient",
    levels={"warning": 0.0, "error": 0.01},
    unit="%",
    blames="gradients",
    formula="attacked images that survive and whose gradient was exactly 0 in every pixel, at the "
    "start of a run or at its end",
    means="The attack could not move: saturated cross-entropy, rounding, a detached graph.",
    do="--set loss=margin or --set logit_scale=0.1; square, which needs no gradient",
    source="Croce and Hein 2020 (flag of AutoAttack)",
    cause="the gradient of its loss is exactly zero, so attacks that follow it stand still",
)
def zero_gradient(e: Evidence) -> Finding | Skip:
    n = int(e.tried.sum())
    if n == 0:
        return Skip("no gradient was seen")
    # A zero gradient on the way to success did no harm: what counts is an attack that stood still.
    zero = (e.zero_start | e.zero_end) & np.isinf(e.record.distance)
    value = float(zero.sum()) / n
    return Finding(
        value,
        f"{100 * value:.1f} % of the attacked images survive with a gradient of exactly 0",
        e.record.index[zero],
        n=n,
    )


@check(
    "D8",
    "loss does not rise",
    levels={"warning": 0.05, "error": 0.5},
    unit="%",
    blames="gradients",
    formula="survivors whose loss ended no higher than it began",
    means="Wrong sign, wrong label, a detached graph, or a step that is too large.",
    do="check the gradient (D18); smaller steps",
    source="Pintor et al. 2022",
    cause="following its gradients does not raise the loss",
)
def loss_rises(e: Evidence) -> Finding | Skip:
    n = int(e.compared.sum())
    if n == 0 or e.attack.startswith("fgsm"):
        return Skip("no run of several steps failed whose loss is known", n)
    stuck = e.compared & ~e.loss_rose
    value = float(stuck.sum()) / n
    return Finding(
        value,
        f"for {100 * value:.1f} % of the survivors the loss ended no higher than it began",
        e.record.index[stuck],
        n=n,
    )


@check(
    "D13",
    "mode and batch",
    levels={"error": 1e-4},
    blames="measurement",
    formula="largest change of a logit when the image is asked alone, as a share of the logit "
    "range; 1 where buffers changed during the evaluation",
    means="An answer that depends on its batch, or a network in training mode, has no robustness "
    "of its own.",
    do="model.eval(); no statistics over the batch in the forward pass",
    passes=(2, 0),
    images=8,
    source="Carlini et al. 2019",
    cause="its answer to an image depends on the rest of the batch",
)
def batch_coupling(e: Evidence) -> Finding | Skip:
    note = "; it was given in training mode and evaluated in evaluation mode"
    if e.random and not e.buffers_changed:
        return Skip("its answers are random: see D14", e.n)
    value = e.coupling if not e.buffers_changed else max(e.coupling, 1.0)
    what = "buffers of the network moved during evaluation" if e.buffers_changed else (
        f"logits of one image change by {value:.2g} (relative) with its batch"
    )  # fmt: skip
    return Finding(value, what + (note if e.trained_mode else ""))


@check(
    "D16",
    "validity",
    levels={"error": 0.0},
    blames="attack",
    formula="points that the attack claims and that lie outside ball or box, or are not finite; "
    "ball: norm <= eps (1 + 1e-6) + 1e-7",
    means="A projection or clipping bug. Such points are refused and never counted.",
    do="project onto ball and box after every step",
    source="Carlini et al. 2019",
    cause="the attack leaves the ball or the box, and what it finds there does not count",
)
def validity(e: Evidence) -> Finding | Skip:
    return Finding(
        float(e.invalid_claims),
        f"{e.invalid_claims} claimed points lie outside the ball or the box; none was counted",
    )


@check(
    "D17",
    "scaling",
    levels={"error": 0.0},
    blames="measurement",
    formula="1 where images leave [0, 1], 1 where all outputs lie in [0, 1] and rows sum to 1",
    means="eps in the wrong units, or probabilities instead of logits, whose gradients are flat.",
    do="images in [0, 1], normalisation inside the model; return logits, not softmax",
    source="Croce and Hein 2020 (flag of AutoAttack)",
    cause="it gives probabilities where logits are expected, or its images are not in [0, 1]",
)
def scaling(e: Evidence) -> Finding | Skip:
    low, high = e.pixel_range
    outside = low < 0 or high > 1
    if outside:
        sentence = f"images span [{low:g}, {high:g}], not [0, 1]: eps is in the wrong units"
    elif e.probabilities:
        sentence = "the subject gives probabilities, not logits: cross-entropy gradients are flat"
    else:
        sentence = "images lie in [0, 1] and the subject gives logits"
    return Finding(float(outside) + float(e.probabilities), sentence)


@check(
    "D20",
    "budget use",
    levels={"warning": 0.1},
    unit="%",
    blames="attack",
    formula="1 - median norm(delta) / eps of survivors",
    also="error where steps x step size < eps",
    means="The steps cannot reach the boundary of the ball, or do not.",
    do="more or longer steps: the default step size (2.5 eps / steps) reaches every point",
    source="Athalye et al. 2018",
    cause="the attack's steps are too short to use its budget",
)
def budget_use(e: Evidence) -> Finding | Skip:
    failed = ~np.isnan(e.reach)
    short = [eps for eps, travel in e.travel.items() if travel < eps * (1 - 1e-6)]
    if short:
        return Finding(
            1 - min(e.travel[eps] / eps for eps in short),
            f"the steps can travel only {e.travel[short[-1]]:.3g} of eps {short[-1]:g}",
            levels={"error": 0.0},
        )
    if not failed.any():
        return Skip("no run failed")
    unused = 1 - float(np.median(e.reach[failed]))
    return Finding(
        max(unused, 0.0),
        f"survivors end at {100 * (1 - unused):.0f} % of the budget (median)",
        n=int(failed.sum()),
    )


@check(
    "D28",
    "few classes",
    levels={"info": 0.0},
    blames="attack",
    formula="classes that the DLR loss lacks: it needs three, towards targets four",
    means="With fewer classes DLR becomes the plain margin or drops its targets, so nothing is "
    "wrong; a number from another library at so few classes may be.",
    do="nothing; compare with apgd_ce",
    source="Croce and Hein 2020 (flag of AutoAttack)",
)
def few_classes(e: Evidence) -> Finding | Skip:
    towards = bool(e.parameters.get("targets")) or e.attack.startswith("autoattack") or e.targeted
    if e.parameters.get("loss") != "dlr" and not e.attack.startswith("autoattack"):
        return Skip("the attack does not use the DLR loss", e.n)
    needs = 4 if towards else 3
    return Finding(
        float(max(0, needs - e.classes)),
        f"DLR needs {needs} classes, the subject has {e.classes}"
        + ("" if e.classes >= needs else ": its substitute was used"),
    )


@check(
    "D29",
    "sample size",
    levels={"info": 0.02},
    unit="points",
    blames="number",
    formula="widest half of the Wilson 95 % interval of robust accuracy over the grid",
    means="Two subjects closer than this cannot be told apart on so few images.",
    do="more images (-n), or the paired comparison of rrd diff",
    source="Wilson 1927",
)
def sample_size(e: Evidence) -> Finding | Skip:
    points = metrics.curve(e.record, list(e.grid))
    half = max((point.high - point.low) / 2 for point in points) if points else 0.0
    return Finding(half, f"with n = {e.n} the 95 % interval reaches ±{100 * half:.1f} points")


@check(
    "D30",
    "too good",
    levels={"warning": 0.02},
    unit="points",
    blames="number",
    formula="accuracy - best known accuracy for data set, norm and eps",
    also="warning where accuracy at 4/3 of the training eps (Linf, from 0.2) is above 0.7 of that "
    "at the training eps",
    means="Better than everything that stood up to AutoAttack so far: most such numbers fell.",
    do="--diagnose, autoattack, and an attack made for this defense",
    source="Carlini et al. 2019; RobustBench",
)
def too_good(e: Evidence) -> Finding | Skip:
    ratio = _beyond_training(e)
    if ratio is not None and ratio > 0.7:
        return Finding(
            ratio - 0.7,
            f"a third beyond its training eps {e.trained_eps:g} it keeps {100 * ratio:.0f} % of "
            "its accuracy",
            levels={"warning": 0.0},
        )
    best = BEST_KNOWN.get((e.dataset, e.norm))
    beyond = [eps for eps in e.grid if best is not None and eps >= best[0] * (1 - 1e-9)]
    if best is None or not beyond or e.targeted:
        return Skip("no best known accuracy for this data set, norm and eps", e.n)
    value = float(e.robust(beyond[0]).mean())
    return Finding(
        value - best[1],
        f"{100 * value:.1f} % at eps {beyond[0]:.3g}; best known: {100 * best[1]:.1f} %",
        eps=beyond[0],
    )


@check(
    "D32",
    "only without gradients",
    levels={"warning": ("images", 0.0), "error": ("images", 0.01)},
    unit="%",
    blames="gradients",
    formula="images that a member of an ensemble breaks without gradients (square), after all "
    "members that follow them had failed at the same eps",
    means="Who sees less cannot find more: the gradients are masked.",
    do="an attack made for this defense; BPDA, EOT; more queries",
    source="Croce and Hein 2020 (flag of AutoAttack)",
    cause="what broke it sees no gradients, and what follows them fails: they are masked",
)
def only_without_gradients(e: Evidence) -> Finding | Skip:
    only = e.only_without_gradients
    if only is None:
        return Skip("no ensemble with members of both kinds", e.n)
    value = float(only.mean())
    return Finding(
        value,
        f"{100 * value:.1f} % fall only to a member that sees no gradients",
        e.record.index[only],
    )


def _beyond_training(e: Evidence) -> float | None:
    """Accuracy at a third more than the training eps, as a share of that at the training eps."""
    trained = e.trained_eps
    if trained is None or trained < STEEP_EPS or e.norm != "linf" or e.targeted:
        return None
    inner = [eps for eps in e.grid if abs(eps - trained) < 1e-6]
    outer = [eps for eps in e.grid if 1.3 * trained <= eps <= 1.5 * trained]
    if not inner or not outer:
        return None
    base = float(e.robust(inner[0]).mean())
    return float(e.robust(outer[0]).mean()) / base if base > 0 else None
