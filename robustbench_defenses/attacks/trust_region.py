"""The nearest point to an image on a plane, within a trust region and the box, for many rows.

    min_D ||a - D||_p   where  n.D = g,  ||D||_2 <= r,  low <= D <= high    (a: towards the image)

With multipliers t of the plane and s of the trust region, D is, entry by entry,

    L2     clip(s a + t n),  0 <= s <= 1
    Linf   t n  clipped to  [a - s, a + s]  and to the box,  s: the new distance
    L1     clip(a clamped to [t n - e^s, t n + e^s])

For a given s, n.D = g is a monotone equation in t; ||D||_2 is monotone in s. Both are solved by
secants and Newton steps inside brackets, for all rows at once. Where the plane is out of reach, D
goes as far towards it as trust region and box allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..engine.rows import take

ROUNDS, INNER = 20, 12
# The steps are rough by nature: shares of r and g that may be missed.
SLACK, MISS = 0.05, 0.005
ROUNDING = 1e-6
TINY = 1e-12


@dataclass
class Problem:
    """`away` (B, D): from the points to the images; `normal` (B, D) of L2 norm 1 or 0; `gain` (B,)
    along it; `radius` (B,); `low`, `high` (B, D): room in the box."""

    away: Tensor
    normal: Tensor
    gain: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor


# (problem, t (B,), s (B,)) to D (B, D) and where it still moves with t (B, D) bool
Form = Callable[[Problem, Tensor, Tensor], tuple[Tensor, Tensor]]
Bracket = Callable[[Problem, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def nearest_on_plane(problem: Problem, norm: str) -> Tensor:
    """The step D (B, D) in a norm: linf, l2 or l1."""
    delta, amount, feasible = shortest(problem)
    index = feasible.nonzero()[:, 0]
    if len(index):
        part = take(problem, index)
        delta[index] = _along_the_path(part, delta[index], amount[index], norm)
    return delta


def shortest(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """The shortest D that reaches the plane: clip(t n), cut off at the radius. Also t (B,), and
    which rows (B,) bool reach it."""
    sign = torch.where(problem.gain < 0, -1.0, 1.0).to(problem.gain)
    size = problem.normal.abs()
    room = torch.where(problem.normal * sign[:, None] > 0, problem.high, -problem.low)
    amount, reached = _filled(size, size, room, problem.gain.abs())
    square, blocked = _filled(torch.ones_like(size), size.square(), room.square(),
                              problem.radius.square())  # fmt: skip
    longest = torch.where(blocked, square.sqrt(), torch.inf)
    feasible = reached & (amount <= longest)
    amount = torch.where(reached, amount, torch.inf).minimum(longest)
    # Neither plane nor trust region within the box: its corner. 0 times infinity is no step.
    grown = (size * amount[:, None]).nan_to_num_(nan=0.0, posinf=torch.inf)
    delta = grown.minimum(room) * problem.normal.sign() * sign[:, None]
    return delta, amount * sign, feasible


def _filled(weight: Tensor, rate: Tensor, most: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """The t (B,) where sum_i weight_i min(rate_i t, most_i) = total, and where (B,) there is one.

    The sum is concave in t: Newton's steps from below end on t. `total` itself is below it.
    """
    t, found = total.clone(), torch.ones_like(total, dtype=torch.bool)
    for _ in range(ROUNDS):
        grown = rate * t[:, None]
        moving = grown < most
        missing = total - (weight * grown.minimum(most)).sum(1)
        slope = (weight * rate * moving).sum(1)
        found = missing <= MISS * total
        stuck = slope <= TINY * TINY
        t = torch.where(found | stuck, t, t + missing / slope.clamp_min(TINY * TINY))
        if bool((found | stuck).all()):
            break
    return t, found


def _along_the_path(problem: Problem, straight: Tensor, amount: Tensor, norm: str) -> Tensor:
    """From the shortest step (B, D) on the plane as far towards the image as the radius allows."""
    form, bracket = FORMS[norm]
    result = straight
    low, high, guess, width = bracket(problem, straight)
    excess = _length(straight) - problem.radius
    search = Path(amount, low, high, excess, torch.full_like(low, torch.inf), guess, width)
    rows = torch.arange(len(low), device=low.device)
    for _ in range(ROUNDS):
        delta, t, met = _on_plane(problem, form, search.guess, search.t)
        excess = torch.where(met, _length(delta) - problem.radius, torch.inf)
        # The first guess is often exact: rounding must not decide.
        fits = excess <= ROUNDING * problem.radius
        result[rows[fits]] = delta[fits]
        search = search.told(fits, t, excess)
        slack = SLACK * problem.radius
        open_ = (search.short < -slack) & ((search.high - search.low).abs() > search.width)
        index = open_.nonzero()[:, 0]
        if len(index) == 0:
            break
        if len(index) < len(rows):
            rows, problem, search = rows[index], take(problem, index), take(search, index)
        search.guess = search.next_guess(SLACK / 2 * problem.radius)
    return result


@dataclass
class Path:
    """A search for s, all (B,): `low` fits into the radius and `high` does not; `short` <= 0 and
    `long` > 0 are the lengths there minus the radius; `t` belongs to `low`; `guess` is tried next;
    a bracket of `width` is narrow enough."""

    t: Tensor
    low: Tensor
    high: Tensor
    short: Tensor
    long: Tensor
    guess: Tensor
    width: Tensor

    def told(self, fits: Tensor, t: Tensor, excess: Tensor) -> Path:
        """After the guess turned out to fit (B,) or not."""
        return replace(
            self,
            t=torch.where(fits, t, self.t),
            low=torch.where(fits, self.guess, self.low),
            high=torch.where(fits, self.high, self.guess),
            short=torch.where(fits, excess, self.short),
            long=torch.where(fits, self.long, excess),
        )

    def next_guess(self, inside: Tensor) -> Tensor:
        """A secant to `inside` (B,) the radius, kept off the ends of the bracket."""
        share = (-inside - self.short) / (self.long - self.short)
        share = torch.where(torch.isfinite(self.long), share.clamp(0.1, 0.9), 0.5)
        return torch.lerp(self.low, self.high, share)


def _on_plane(problem: Problem, form: Form, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D (B, D) on the plane for the given s (B,), its t (B,), and where (B,) there is one."""
    low, high = torch.full_like(t, -torch.inf), torch.full_like(t, torch.inf)
    enough = MISS * problem.gain.abs() + MISS * MISS * problem.radius
    for _ in range(INNER):
        delta, moving = form(problem, t, s)
        missing = problem.gain - (problem.normal * delta).sum(1)
        met = missing.abs() <= enough
        if bool(met.all()):
            break
        low, high = torch.where(missing > 0, t, low), torch.where(missing < 0, t, high)
        slope = (problem.normal.square() * moving).sum(1)
        flat = slope <= TINY
        # Where nothing moves with t, go farther: twice as far each time.
        leap = missing.sign() * torch.maximum(t.abs(), problem.radius)
        tried = t + torch.where(flat, leap, missing / slope.clamp_min(TINY))
        middle = torch.where(torch.isfinite(low) & torch.isfinite(high), (low + high) / 2, tried)
        # A step back to an end of the bracket goes in circles; rounding must not hide it.
        close = ROUNDING * torch.maximum(t.abs(), tried.abs())
        inside = (tried - low > close) & (high - tried > close)
        t = torch.where(met, t, torch.where(inside, tried, middle))
    return delta, t, met


def _length(delta: Tensor) -> Tensor:
    length: Tensor = delta.norm(dim=1)
    return length


# Each form with its bracket: s of the shortest step, s that is too ambitious, a first guess, and a
# width that is narrow enough.


def _l2(problem: Problem, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    wish = torch.addcmul(problem.normal * t[:, None], problem.away, s[:, None])
    delta = wish.maximum(problem.low).minimum(problem.high)
    return delta, delta == wish


def _l2_bracket(problem: Problem, straight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    along = (problem.normal * problem.away).sum(1, keepdim=True)
    across = _length(problem.away - along * problem.normal).clamp_min(TINY)
    # Exact where no entry meets the box; the box shortens a step.
    guess = (problem.radius.square() - _length(straight).square()).clamp_min(0).sqrt() / across
    high = (4 * guess).clamp_max(1)
    return torch.zeros_like(high), high, guess.clamp_max(1), high / 100


def _linf(problem: Problem, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    wish = problem.normal * t[:, None]
    low = (problem.away - s[:, None]).maximum(problem.low)
    high = (problem.away + s[:, None]).minimum(problem.high)
    delta = wish.maximum(low).minimum(high)
    return delta, delta == wish


def _linf_bracket(problem: Problem, straight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low = (problem.away - straight).abs().amax(1)
    high = (problem.away.abs().amax(1) - problem.radius).clamp_min(0)
    return low, high, (low + high) / 2, problem.radius / 100


def _l1(problem: Problem, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    width = s.exp()[:, None]
    centre = problem.normal * t[:, None]
    band = problem.away - centre
    wish = centre + band.maximum(-width).minimum(width)
    delta = wish.maximum(problem.low).minimum(problem.high)
    return delta, (band.abs() > width) & (delta == wish)


def _l1_bracket(problem: Problem, straight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    radius = problem.radius.clamp_min(TINY)
    count = (problem.away.abs() > ROUNDING * radius[:, None]).sum(1).clamp_min(1)
    guess = (radius / count.to(radius).sqrt()).log()
    low, high = guess - math.log(1000), (1000 * radius).log()
    return low, high, guess, torch.full_like(low, 0.05)


FORMS: dict[str, tuple[Form, Bracket]] = {
    "l2": (_l2, _l2_bracket),
    "linf": (_linf, _linf_bracket),
    "l1": (_l1, _l1_bracket),
}
