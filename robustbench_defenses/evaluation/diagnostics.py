"""Is this number robustness, or a weak attack? Named checks on a result's own evidence.

Each check is a function from `Evidence` to a `Diagnostic`; adding one is adding a function with the
`check` decorator. A check that cannot run says so; none is silently absent. Sources: Carlini et al.
2019, Athalye et al. 2018, Croce and Hein 2020 (flags of AutoAttack).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .record import Record
from .schema import Diagnostic

if TYPE_CHECKING:
    from torch import Tensor

Severity = Literal["error", "warning", "info"]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Evidence:
    """What the checks may look at. Arrays have one entry per example of `record`."""

    record: Record
    grid: tuple[float, ...]
    norm: str
    attack: str
    targeted: bool
    classes: int
    zero_start: Bools
    zero_end: Bools
    tried: Bools
    loss_rose: Bools
    reach: NDArray[np.float64]  # norm(delta) / eps where a run failed, else NaN
    travel: Mapping[float, float]  # eps -> farthest the attack's steps can go
    invalid_claims: int  # claimed points outside ball or box, or not finite
    pixel_range: tuple[float, float]
    probabilities: bool
    coupling: float  # largest relative change of logits when an image is asked alone
    buffers_changed: bool
    trained_mode: bool
    one_step: Record | None = field(default=None)  # fgsm on the same examples

    def robust(self, eps: float) -> Bools:
        """Examples (N,) that survive `eps`."""
        return survivors(self.record, eps)


def survivors(record: Record, eps: float) -> Bools:
    """Examples (N,) of `record` that survive `eps`."""
    if record.broken is not None and record.eps is not None:
        at = np.flatnonzero(np.isclose(record.eps, eps, rtol=1e-9, atol=0))
        if len(at):
            left: Bools = ~record.broken[at[0]]
            return left
    standing: Bools = record.distance > metrics.largest_allowed(eps)
    return standing


Check = Callable[[Evidence], Diagnostic]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check; they run in the order of this file."""
    CHECKS.append(function)
    return function


def run_checks(evidence: Evidence) -> list[Diagnostic]:
    """Every check's verdict on the evidence."""
    return [function(evidence) for function in CHECKS]


def verdict(
    id: str,
    name: str,
    value: float,
    warning: float | None,
    error: float | None,
    sentence: str,
    n: int,
    images: Sequence[int] | NDArray[np.int64] | Tensor = (),
) -> Diagnostic:
    """A check whose `value` fires above `warning` or `error`; `images`: numbers concerned."""
    fired, severity, threshold = False, "info", error if warning is None else warning
    for limit, level in ((error, "error"), (warning, "warning")):
        if limit is not None and value > limit:
            fired, severity, threshold = True, level, limit
            break
    listed = [int(i) for i in images[:20]] if fired else []
    return Diagnostic(
        id=id, name=name, severity=severity, value=value, threshold=threshold, n=n,  # type: ignore[arg-type]
        fired=fired, sentence=sentence, images=listed,
    )  # fmt: skip


def skipped(id: str, name: str, n: int, reason: str) -> Diagnostic:
    """A check that could not run, and why."""
    return Diagnostic(
        id=id, name=name, severity="info", value=None, threshold=None, n=n,
        fired=False, sentence=f"not checked: {reason}", skipped=reason,
    )  # fmt: skip


def tolerance(n: int) -> float:
    """What two equal attacks may differ by on `n` examples."""
    return max(0.002, 2 / n)


@check
def large_eps(e: Evidence) -> Diagnostic:
    """D4: at Linf 0.5 every image can become grey: at most the largest class survives."""
    n = len(e.record)
    large = [eps for eps in e.grid if eps >= 0.5]
    if e.norm != "linf" or not large or e.targeted:
        return skipped("D4", "large eps", n, "no untargeted Linf budget of 0.5 or more")
    share = float(np.bincount(e.record.label).max()) / n
    chance = max(1 / e.classes, share)
    limit = chance + 3 * float(np.sqrt(chance * (1 - chance) / n))
    left = e.robust(large[0])
    value = float(left.mean())
    return verdict(
        "D4", "large eps", value, None, limit,
        f"{100 * value:.1f} % survive eps {large[0]:g}, where every image can become the same grey "
        f"(no classifier keeps more than {100 * chance:.1f} %): the attack is too weak here",
        n, e.record.index[left],
    )  # fmt: skip


@check
def one_step(e: Evidence) -> Diagnostic:
    """D5: examples that one step breaks and many steps do not."""
    n = len(e.record)
    if e.attack.startswith("fgsm"):
        return skipped("D5", "one step beats many", n, "this is the one-step attack")
    if e.one_step is None or not np.array_equal(e.one_step.index, e.record.index):
        return skipped("D5", "one step beats many", n, "no fgsm result on the same examples")
    worst, eps, found = 0.0, 0.0, np.zeros(n, dtype=bool)
    known = e.grid if e.one_step.eps is None else [x for x in e.grid if x in e.one_step.eps]
    for point in known:
        only = e.robust(point) & ~survivors(e.one_step, point)
        if float(only.mean()) >= worst:
            worst, eps, found = float(only.mean()), point, only
    return verdict(
        "D5", "one step beats many", worst, tolerance(n), 0.01,
        f"fgsm breaks {100 * worst:.1f} % of the examples that {e.attack} leaves at eps {eps:g}",
        n, e.record.index[found],
    )  # fmt: skip


@check
def zero_gradient(e: Evidence) -> Diagnostic:
    """D6: examples whose gradient is exactly zero where the attack needs it."""
    n = int(e.tried.sum())
    if n == 0:
        return skipped("D6", "zero gradient", 0, "no example was attacked")
    # A zero gradient on the way to success did no harm: what counts is an attack that stood still.
    left = np.isinf(e.record.distance)
    zero = (e.zero_start | e.zero_end) & left
    value = float(zero.sum()) / n
    return verdict(
        "D6", "zero gradient", value, 0.0, 0.01,
        f"{100 * value:.1f} % of the attacked examples survive with a gradient of exactly 0: "
        "the attack could not move; try --set loss=margin or --set logit_scale=0.1",
        n, e.record.index[zero],
    )  # fmt: skip


@check
def loss_rises(e: Evidence) -> Diagnostic:
    """D8: the attack's loss should end above its start."""
    failed = ~np.isnan(e.reach)
    n = int(failed.sum())
    if n == 0 or e.attack.startswith("fgsm"):
        return skipped("D8", "loss does not rise", n, "no run of several steps failed")
    stuck = failed & ~e.loss_rose
    value = float(stuck.sum()) / n
    return verdict(
        "D8", "loss does not rise", value, 0.05, 0.5,
        f"for {100 * value:.1f} % of the survivors the loss did not rise: wrong sign, detached "
        "gradient or too large a step",
        n, e.record.index[stuck],
    )  # fmt: skip


@check
def batch_coupling(e: Evidence) -> Diagnostic:
    """D13: an image's logits must not depend on its batch, nor an evaluation on buffers."""
    n = len(e.record)
    value = e.coupling if not e.buffers_changed else max(e.coupling, 1.0)
    what = "buffers of the network moved during evaluation" if e.buffers_changed else (
        f"logits of one image change by {value:.2g} (relative) with its batch"
    )  # fmt: skip
    note = "; it was given in training mode and evaluated in evaluation mode"
    return verdict(
        "D13", "mode and batch", value, None, 1e-4, what + (note if e.trained_mode else ""), n
    )


@check
def validity(e: Evidence) -> Diagnostic:
    """D16: every point the attack claims lies in ball and box and is finite."""
    return verdict(
        "D16", "validity", float(e.invalid_claims), None, 0.0,
        f"{e.invalid_claims} claimed points lie outside the ball or the box; none was counted",
        len(e.record),
    )  # fmt: skip


@check
def scaling(e: Evidence) -> Diagnostic:
    """D17: images in [0, 1] and logits rather than probabilities."""
    low, high = e.pixel_range
    outside = low < 0 or high > 1
    value = float(outside) + float(e.probabilities)
    if outside:
        sentence = f"images span [{low:g}, {high:g}], not [0, 1]: eps is in the wrong units"
    elif e.probabilities:
        sentence = "the subject gives probabilities, not logits: cross-entropy gradients are flat"
    else:
        sentence = "images lie in [0, 1] and the subject gives logits"
    return verdict("D17", "scaling", value, None, 0.0, sentence, len(e.record))


@check
def budget_use(e: Evidence) -> Diagnostic:
    """D20: the steps must be able to reach the boundary of the ball, and should."""
    failed = ~np.isnan(e.reach)
    short = [eps for eps, travel in e.travel.items() if travel < eps * (1 - 1e-6)]
    if short:
        value = 1 - min(e.travel[eps] / eps for eps in short)
        return verdict(
            "D20", "budget use", value, None, 0.0,
            f"the steps can travel only {e.travel[short[-1]]:.3g} of eps {short[-1]:g}: "
            "more or longer steps are needed",
            len(e.record),
        )  # fmt: skip
    if not failed.any():
        return skipped("D20", "budget use", 0, "no run failed")
    unused = 1 - float(np.median(e.reach[failed]))
    return verdict(
        "D20", "budget use", max(unused, 0.0), 0.1, None,
        f"survivors end at {100 * (1 - unused):.0f} % of the budget (median)",
        int(failed.sum()),
    )  # fmt: skip


@check
def sample_size(e: Evidence) -> Diagnostic:
    """D29: how wide the interval is. Information: n and interval stand beside every number."""
    n = len(e.record)
    points = metrics.curve(e.record, list(e.grid))
    half = max((point.high - point.low) / 2 for point in points) if points else 0.0
    return Diagnostic(
        id="D29", name="sample size", severity="info", value=half, threshold=0.02, n=n,
        fired=half > 0.02,
        sentence=f"with n = {n} the 95 % interval reaches +-{100 * half:.1f} points",
    )  # fmt: skip


def evidence_arrays(traces: list[dict[str, Any]], name: str) -> Any:
    """One array over all blocks."""
    return np.concatenate([trace[name] for trace in traces])
