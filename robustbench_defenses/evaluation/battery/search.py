"""Is the attack good enough? It against itself: steps, starts, losses, seeds, budgets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..checks import Finding, Skip, tolerance
from .probe import FEWER, MORE_STARTS, Bools, Lacking, Probe, alive, check, first

LAST_STEPS = 10  # where an optimisation should have come to rest (Pintor et al. 2022)
STILL_MOVING = 0.05
AHEAD = 3  # times the steps that were made: how far an optimisation is thought on


@check(
    "D2",
    "step count",
    levels={"warning": ("images", 0.01)},
    unit="points",
    blames="attack",
    formula="accuracy after T steps - accuracy after 2T steps",
    also="error where accuracy rises by more than two images, or the mean best loss of survivors "
    "falls by more than 5 %",
    means="A drop: T steps had not converged. A rise: the attack is broken.",
    do="more steps; a rise: a smaller step, keep the best point",
    passes=(81, 80),
    source="Carlini et al. 2019",
    cause="more steps make the attack weaker",
)
def steps(p: Probe) -> Finding | Skip:
    count = p.question.attack.steps
    out, path = p.watched(steps=2 * count)
    more = alive(out, p.eps)
    change = float(p.base.mean() - more.mean())
    limit = tolerance(p.n)
    if -change > limit:
        return Finding(
            -change,
            f"{2 * count} steps leave {-100 * change:.1f} points more standing than {count}",
            levels={"error": limit},
        )
    both = torch.from_numpy(p.base & more)
    before, after = (one.best()[both.to(one.losses.device)] for one in (p.suspect[1], path))
    seen = ~(before.isnan() | after.isnan())
    fall = float((before - after)[seen].sum() / before[seen].abs().sum().clamp_min(1e-30))
    if fall > 0.05:
        return Finding(
            fall,
            f"the loss after {2 * count} steps is {100 * fall:.0f} % lower than after {count}",
            levels={"error": 0.05},
        )
    return Finding(
        change, f"{2 * count} steps leave {100 * change:.1f} points less standing than {count}"
    )


@check(
    "D3",
    "eps monotone",
    levels={"warning": ("images", 0.0), "error": ("images", 0.01)},
    unit="%",
    blames="attack",
    formula="images that break at eps and survive 4/3 eps, each attacked afresh",
    means="What breaks in a small ball can break in a larger one: the search fails there.",
    do="more steps and restarts; carry successes upwards (--sweep envelope does)",
    passes=(41, 40),
    source="Athalye et al. 2018",
    cause="its search fails at larger budgets, where success is only easier",
)
def monotone(p: Probe) -> Finding | Skip:
    if p.larger <= p.eps:
        return Skip("there is no larger budget", p.n)
    only = p.standing(eps=p.larger) & ~p.base
    return Finding(
        float(only.mean()),
        f"{100 * only.mean():.1f} % break at eps {p.eps:.3g} and survive {p.larger:.3g}",
        p.numbers(only),
    )


@check(
    "D11",
    "restarts",
    levels={"warning": ("images", 0.01), "error": ("images", 0.05)},
    unit="points",
    blames="attack",
    formula="accuracy from one start - accuracy from three starts",
    means="The loss is rugged: one start does not find what is there.",
    do="--set restarts=5, targeted attacks (apgd_t), autoattack",
    passes=(41, 40),
    source="Carlini et al. 2019",
    cause="one start of the attack is not enough on so rugged a loss",
)
def restarts(p: Probe) -> Finding | Skip:
    drop = float(p.base.mean() - p.starts.mean())
    return Finding(
        drop,
        f"{1 + MORE_STARTS} starts instead of one leave {100 * drop:.1f} points less standing",
        p.numbers(p.base & ~p.starts),
    )


@check(
    "D12",
    "loss choice",
    levels={"warning": ("images", 0.02)},
    unit="points",
    blames="attack",
    formula="accuracy under the loss in use - accuracy under the margin loss; untargeted - "
    "targeted (APGD on DLR towards three classes, 25 steps); the larger",
    means="Cross-entropy is masked, or looks the wrong way.",
    do="always report the worst: --attack autoattack, or pgd with loss=ce and loss=margin",
    passes=(118, 115),
    source="Carlini et al. 2019; Croce and Hein 2020",
    cause="another loss does much better",
)
def loss_choice(p: Probe) -> Finding | Skip:
    try:
        other = p.standing(loss="margin")
    except Lacking:
        other = p.standing("pgd", loss="margin")
    both = p.base & other
    aimed = both & p.standing("apgd_t", among=both, steps=25, targets=3)
    changes = {
        "the margin loss leaves": float(p.base.mean() - other.mean()),
        "targets leave": float(both.mean() - aimed.mean()),
    }
    what, drop = max(changes.items(), key=lambda item: item[1])
    return Finding(
        drop, f"{what} {100 * drop:.1f} points less standing", p.numbers(p.base & ~aimed)
    )


@check(
    "D21",
    "silent success",
    levels={"error": 0.0},
    unit="%",
    blames="attack",
    formula="survivors for which a point on the attack's path, judged by the subject, counts",
    means="The attack found it and forgot it: it reports its last point instead of its best.",
    do="judge every iterate, return the best",
    source="Pintor et al. 2022",
    cause="the attack finds adversarial images and does not report them",
)
def silent_success(p: Probe) -> Finding | Skip:
    passed = p.base & _passed(p)
    hidden = passed & _counting(p, passed)
    return Finding(
        float(hidden.mean()),
        f"{100 * hidden.mean():.1f} % survive although the attack passed a point that counts",
        p.numbers(hidden),
    )


@check(
    "D27",
    "transfer failure",
    levels={"warning": 0.1},
    unit="%",
    blames="attack",
    formula="survivors that the search saw break on what it asks (attack view, bf16 twin) and the "
    "deployed subject still classifies rightly",
    means="What is attacked is too far from what is deployed.",
    do="attack the deployed pipeline; another view (--view), --precision fp32",
    source="Pintor et al. 2022",
    cause="the attack works on a stand-in that is too far from the subject",
)
def transfer_failure(p: Probe) -> Finding | Skip:
    passed = p.base & _passed(p)
    refused = passed & ~_counting(p, passed)
    return Finding(
        float(refused.mean()),
        f"{100 * refused.mean():.1f} % break in the search and not in the verdict",
        p.numbers(refused),
    )


def _passed(p: Probe) -> Bools:
    passed: Bools = p.suspect[1].passed.cpu().numpy()
    return passed


def _counting(p: Probe, chosen: Bools) -> Bools:
    """Images whose remembered point the deployed subject misclassifies, among the chosen."""
    where = torch.from_numpy(chosen.nonzero()[0]).to(p.labels.device)
    result = np.zeros(p.n, dtype=bool)
    if len(where):
        result[chosen] = p.counts(p.suspect[1].points[where], where).cpu().numpy()
    return result


@check(
    "D22",
    "incomplete optimisation",
    levels={"warning": ("images", 0.05)},
    unit="%",
    blames="attack",
    formula="survivors whose best loss still moved by more than 0.05 of its whole range in the "
    "last 10 steps, and whose margin would close in three times as many steps more if its pace "
    "slackened on as it did",
    means="The attack was stopped while it was still getting better, and near success.",
    do="more steps (--set steps=100)",
    source="Pintor et al. 2022",
    cause="the attack was stopped too early",
)
def incomplete(p: Probe) -> Finding | Skip:
    path = p.suspect[1]
    enough = (path.age > LAST_STEPS).cpu().numpy() & p.base
    if not enough.any():
        return Skip(f"no survivor saw more than {LAST_STEPS} steps")
    chosen = torch.from_numpy(enough)
    length = path.age.cpu()[chosen]
    losses, margins = (
        series[chosen.to(series.device)].cpu().double() for series in (path.losses, path.margins)
    )
    best = losses.nan_to_num(-torch.inf).cummax(1).values
    lowest = losses.nan_to_num(torch.inf).amin(1)
    last = _asked(best, length)
    moved = (last - _asked(best, length - LAST_STEPS)) / (last - lowest).clamp_min(1e-30)
    # The cross-entropy of a robust survivor is a thousandth, and a tenth of that is still a large
    # part of its range: only a margin says how far from success the attack was stopped.
    nearest = margins.nan_to_num(-torch.inf).cummax(1).values
    reached = _asked(nearest, length) + _gain_to_come(nearest, length)
    moving = np.zeros(p.n, dtype=bool)
    moving[enough] = ((moved > STILL_MOVING) & (reached > 0)).numpy()
    value = float(moving.sum() / enough.sum())
    return Finding(
        value,
        f"for {100 * value:.1f} % of the survivors the loss still rose in the last steps, fast "
        "enough for more steps to reach another class",
        p.numbers(moving),
        n=int(enough.sum()),
    )


def _asked(series: Tensor, count: Tensor) -> Tensor:
    """The value (M,) of each row of `series` (M, T) at its point number `count` (M,), from 1."""
    return series.gather(1, count.clamp_min(1)[:, None] - 1)[:, 0]


def _gain_to_come(best: Tensor, length: Tensor) -> Tensor:
    """How far (M,) running maxima `best` (M, T) of `length` (M,) points each, more than
    `LAST_STEPS`, would rise in `AHEAD` times as many steps more.

    Every ten steps gain a share of what the ten before them did, at most all of it: the share that
    the last ten have of the pace of the (up to) ten before. An attack at rest gains nothing, one
    with steps too small for its budget goes on at its pace.
    """
    before = (length - 1 - LAST_STEPS).clamp_max(LAST_STEPS)  # steps, 0 where there were no others
    middle = _asked(best, length - LAST_STEPS)
    gained = _asked(best, length) - middle
    pace = (middle - _asked(best, length - LAST_STEPS - before)) / before.clamp_min(1)
    share = (gained / LAST_STEPS / pace.clamp_min(1e-30)).masked_fill(before == 0, 1.0)
    share = share.clamp_max(1 - 1e-6)  # the sum of a geometric series
    return gained * share * (1 - share ** (AHEAD * length / LAST_STEPS)) / (1 - share)


@check(
    "D23",
    "min-norm against fixed eps",
    levels={"warning": ("images", 0.01)},
    unit="%",
    blames="attack",
    formula="images that fmn (50 steps) breaks within eps and the attack does not, or the reverse",
    also="info where the attack is the stronger one",
    means="The weaker of the two is badly tuned, for this subject.",
    do="report the worst of both; more steps for the weaker",
    passes=(51, 50),
    source="Carlini et al. 2019",
    cause="a search for the nearest point finds more than the attack does",
)
def minimum_norm(p: Probe) -> Finding | Skip:
    near = p.standing("fmn", steps=50)
    more, less = p.base & ~near, near & ~p.base
    if less.sum() > more.sum():
        return Finding(
            float(less.mean()),
            f"{p.short} breaks {100 * less.mean():.1f} % that fmn leaves",
            p.numbers(less),
            levels={"info": ("images", 0.01)},
        )
    return Finding(
        float(more.mean()),
        f"fmn breaks {100 * more.mean():.1f} % that {p.short} leaves",
        p.numbers(more),
    )


@check(
    "D31",
    "repeat",
    levels={"error": 0.0},
    unit="%",
    blames="measurement",
    formula="of 50 images, those that the same attack with the same seed decides otherwise",
    also="warning where another seed moves accuracy by more than 1 point (and two images)",
    means="Hidden state, or randomness that no seed controls.",
    do="make the forward pass a function of its input; declare random subjects",
    passes=(103, 100),
    source="Carlini et al. 2019",
    cause="the same question gets different answers",
)
def repeat(p: Probe) -> Finding | Skip:
    few = first(p.n, FEWER)
    chosen = torch.from_numpy(few.nonzero()[0]).to(p.labels.device)
    entry, attack = p.attack_of(None, {})
    runs = [alive(p.run(attack, entry.name, p.eps, p.seed, chosen), p.eps) for _ in range(2)]
    differs = np.zeros(p.n, dtype=bool)
    differs[few] = runs[0] != runs[1]
    value = float(differs[few].mean())
    if value > 0:
        return Finding(
            value,
            f"the same attack with the same seed decides {100 * value:.1f} % otherwise",
            p.numbers(differs),
            n=int(few.sum()),
        )
    moved = abs(float(p.base.mean() - p.standing(seed=p.seed + 1).mean()))
    return Finding(
        moved,
        f"another seed moves accuracy by {100 * moved:.1f} points",
        levels={"warning": ("images", 0.01)},
    )
