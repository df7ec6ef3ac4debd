"""Norms, the one tolerance, budgets, and projections onto ball and box together."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, get_args

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[str, ...] = get_args(Norm)

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-7

# Of the L1 projection: more rounds than bisection alone would need, and the sum's rounding.
NEWTON_ROUNDS = 100
EXACT = 1e-13


def largest_allowed(eps: Tensor) -> Tensor:
    """The largest norm that counts as inside a ball of radius `eps`: the one tolerance we have."""
    return eps * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE


def distance(a: Tensor, b: Tensor, norm: str) -> Tensor:
    """Norm of `a - b` per example.

    `a`, `b`: (N, ...) images; returns (N,) in pixel units. Sums run over all pixels and channels,
    in float64, so that the verdict never hangs on the order of a float32 sum.
    """
    difference = (a.double() - b.double()).flatten(1)
    if norm == "linf":
        result = difference.abs().amax(1)
    elif norm == "l2":
        result = difference.square().sum(1).sqrt()
    elif norm == "l1":
        result = difference.abs().sum(1)
    elif norm == "l0":
        result = (difference != 0).sum(1).double()
    else:
        raise ValueError(f"unknown norm {norm!r}")
    return result


def dual(norm: str) -> str:
    """The dual norm: gradients are measured in it."""
    return {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """`values` (N,) shaped (N, 1, ..., 1) to broadcast over `like` (N, ...)."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def project(points: Tensor, centres: Tensor, eps: Tensor, norm: str) -> Tensor:
    """Project `points` (N, ...) onto the balls of radius `eps` (N,) around `centres` and the box.

    Linf is exact. L2 scales to the sphere, then clips to the box (feasible, the field's usual
    rule). L1 is the exact projection onto ball and box together (Croce and Hein 2021).
    """
    if norm == "linf":
        radius = per_row(eps, points)
        return points.minimum(centres + radius).maximum(centres - radius).clamp_(0, 1)
    if norm == "l2":
        delta = points - centres
        length = delta.flatten(1).norm(dim=1)
        scale = (eps / length.clamp_min(1e-30)).clamp_max(1.0)
        return (centres + delta * per_row(scale, delta)).clamp_(0, 1)
    if norm == "l1":
        return add_inwards(centres, project_l1_box(points - centres, centres, eps))
    raise ValueError(f"unknown norm {norm!r}")


def add_inwards(centres: Tensor, delta: Tensor) -> Tensor:
    """`centres + delta` (N, ...), rounded towards `centres`: no norm exceeds that of `delta`.

    Rounding to nearest adds up to 1e-5 to the L1 norm of a float32 image of 3,072 values, more than
    the tolerance at budgets below 10.
    """
    import torch

    points = centres + delta
    longer = (points.double() - centres.double()).abs() > delta.double().abs()
    return torch.where(longer, torch.nextafter(points, centres), points)


def project_l1_box(delta: Tensor, centres: Tensor, eps: Tensor) -> Tensor:
    """Nearest point to `delta` with `centres + delta` in [0, 1] and L1 norm at most `eps`.

    d_i = sign(delta_i) clip(|delta_i| - t, 0, room_i) with the smallest t >= 0 that meets the
    budget (Croce and Hein 2021, "Mind the box", section 3).
    """
    import torch

    shape = delta.shape
    flat, base = delta.flatten(1).double(), centres.flatten(1).double()  # (N, D)
    size = flat.abs()
    room = torch.where(flat > 0, 1 - base, base).clamp_min_(0)
    kept = size.minimum(room)
    long = (kept.sum(1) > eps).nonzero()[:, 0]
    if len(long):
        part, most = size[long], room[long]
        shift = _l1_shift(part, most, eps[long].double())
        kept[long] = part.sub_(shift[:, None]).clamp_min_(0).minimum(most)
    return kept.mul_(flat.sign()).to(delta.dtype).view(shape)


def _l1_shift(size: Tensor, room: Tensor, budget: Tensor) -> Tensor:
    """The t (N,) where sum over i of clip(size_i - t, 0, room_i) = budget; at t = 0 it is more.

    The sum falls and is piecewise linear in t, so a step of Newton's method from the right piece
    ends on t exactly. It is neither convex nor concave: a step that leaves the bracket is replaced
    by the middle of the bracket.
    """
    import torch

    low, high = torch.zeros_like(budget), size.amax(1) + 1
    shift = low
    for _ in range(NEWTON_ROUNDS):
        left = size - shift[:, None]
        falling = ((left > 0) & (left <= room)).sum(1)
        excess = left.clamp_min_(0).minimum(room).sum(1) - budget
        going = excess.abs() > EXACT * (1 + budget)
        if not bool(going.any()):
            break
        above = excess > 0
        low, high = torch.where(above, shift, low), torch.where(above, high, shift)
        ahead = shift + excess / falling
        inside = (ahead > low) & (ahead < high)  # false where nothing falls
        ahead = torch.where(inside, ahead, (low + high) / 2)
        shift = torch.where(going, ahead, shift)
    return shift


def parse_eps(text: str, norm: str = "linf") -> float:
    """A budget given as a number or a fraction: `0.3`, `8/255`. Nonsense is a `UserError`."""
    above, slash, below = text.rpartition("/")
    try:
        if "/" in above:
            raise ValueError
        value = float(Fraction(above) / Fraction(below)) if slash else float(text)
    except ZeroDivisionError:
        raise UserError(f"eps {text!r} divides by zero") from None
    except (ValueError, OverflowError):
        raise UserError(f"eps {text!r} is not a number", hint="write 0.3 or 8/255") from None
    return check_eps(value, norm, text)


def check_eps(value: float, norm: str, text: str | None = None) -> float:
    """`value` if it is a possible budget for `norm`, else a `UserError` that says why not."""
    shown = text or f"{value:g}"
    if not math.isfinite(value):
        raise UserError(f"eps {shown} is not a finite number")
    if value < 0:
        raise UserError(f"eps {shown} is negative; a budget is a distance in pixel units, >= 0")
    if norm == "linf" and value > 1:
        raise UserError(
            f"Linf eps {shown} is larger than the pixel range [0, 1]",
            hint=f"{shown} looks like {shown}/255: --eps {shown}/255"
            if value <= 255 and "/" not in shown
            else None,
        )
    return value


def parse_grid(text: str, norm: str = "linf") -> list[float]:
    """A grid of budgets: `0:0.5:0.05` (both ends included) or `0,0.1,8/255`; rising, no doubles."""
    text = text.strip()
    if ":" in text:
        parts = text.split(":")
        if len(parts) != 3:
            raise UserError(
                f"eps grid {text!r} needs start:stop:step", hint="for example 0:0.5:0.05"
            )
        start, stop, step = (parse_eps(part, norm) for part in parts)
        if step <= 0 or stop < start:
            raise UserError(f"eps grid {text!r} is empty", hint="start:stop:step with step > 0")
        steps = (stop - start) / step + 1e-9
        if steps >= 1000:
            raise UserError(f"eps grid {text!r} has {steps + 1:.0f} points; at most 1000")
        return [round(start + step * i, 12) for i in range(int(steps) + 1)]
    values = [parse_eps(part, norm) for part in text.replace(",", " ").split()]
    if not values:
        raise UserError("the eps grid is empty", hint="for example --eps-sweep 0:0.5:0.05")
    return sorted(set(values))
