"""The steps of Brendel and Bethge's attack, against a general solver of the same problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from robustbench_defenses.attacks.trust_region import (
    SLACK,
    Problem,
    nearest_on_plane,
    shortest,
)
from robustbench_defenses.engine.rows import take

SIZE = 8
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def problems(count: int, spread: float, seed: int = 0) -> Problem:
    """Random points near random images, a third of the pixels at 0 or 1, and planes near them."""
    draw = np.random.default_rng(seed)
    images = draw.random((count, SIZE))
    images[:, ::3] = images[:, ::3].round()
    points = np.clip(images + draw.normal(0, spread, images.shape), 0, 1)
    normal = draw.normal(size=images.shape)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    gain = draw.normal(0, 0.05, count)
    radius = draw.choice([0.05, 0.1, 0.3, 1.0], count)
    arrays = (images - points, normal, gain, radius, -points, 1 - points)
    return Problem(*(torch.from_numpy(array) for array in arrays))


def one(problem: Problem, row: int) -> Problem:
    return take(problem, torch.tensor([row]))


def reference(problem: Problem, begin: Tensor, norm: str) -> float | None:
    """The smallest distance to the image by sequential quadratic programming; None: no answer."""
    away, normal = problem.away[0].numpy(), problem.normal[0].numpy()
    gain, radius = float(problem.gain[0]), float(problem.radius[0])
    box = list(zip(problem.low[0].tolist(), problem.high[0].tolist()))
    start = begin.numpy()
    rest = away - start
    # Linf and L1 are linear in bounds on |away - D|: one for all entries, or one each.
    bounds = {"l2": 0, "linf": 1, "l1": SIZE}[norm]
    first = np.abs(rest).max(initial=0) * np.ones(1) if norm == "linf" else np.abs(rest)[:bounds]

    def cost(v: np.ndarray) -> float:
        return float(((away - v) ** 2).sum() if norm == "l2" else v[SIZE:].sum())

    constraints = [
        {"type": "eq", "fun": lambda v: normal @ v[:SIZE] - gain},
        {"type": "ineq", "fun": lambda v: radius**2 - (v[:SIZE] ** 2).sum()},
    ]
    if bounds:
        constraints += [
            {"type": "ineq", "fun": lambda v: v[SIZE:] - (away - v[:SIZE])},
            {"type": "ineq", "fun": lambda v: v[SIZE:] + (away - v[:SIZE])},
        ]
    found = minimize(
        cost, np.append(start, first), bounds=box + [(0, None)] * bounds, constraints=constraints,
        method="SLSQP", options={"maxiter": 300, "ftol": 1e-12},
    )  # fmt: skip
    return float(np.linalg.norm(away - found.x[:SIZE], ord=ORDER[norm])) if found.success else None


@pytest.mark.parametrize("spread", [0.05, 0.3])
@pytest.mark.parametrize("norm", list(ORDER))
def test_steps_are_nearly_optimal(norm: str, spread: float) -> None:
    """On the plane, within radius and box, and nearly all of the way that there is."""
    problem = problems(40, spread)
    step = nearest_on_plane(problem, norm)
    straight, _, feasible = shortest(problem)
    assert ((step >= problem.low - 1e-12) & (step <= problem.high + 1e-12)).all()
    assert (step.norm(dim=1) <= problem.radius * (1 + 1e-9)).all()
    missed = ((problem.normal * step).sum(1) - problem.gain).abs()
    assert (missed <= 0.01 * problem.gain.abs() + 1e-4 * problem.radius)[feasible].all()
    shares = []
    for row in feasible.nonzero()[:, 0].tolist():
        best = reference(one(problem, row), straight[row], norm)
        if best is None:
            continue
        ends = (straight[row], step[row])
        begin, mine = (float((problem.away[row] - end).norm(p=ORDER[norm])) for end in ends)
        assert mine >= best - 1e-2 * begin  # the plane is met to a hundredth of the gain
        if begin - best > 0.01 * begin:
            shares.append((begin - mine) / (begin - best))
    assert len(shares) >= 20
    assert np.mean(shares) > 1 - SLACK
    assert min(shares) > 0.7


def test_out_of_reach_goes_as_far_as_it_may() -> None:
    """A plane too far away: straight towards it, to the radius or into the corner of the box."""
    problem = problems(200, 0.3, seed=1)
    problem.gain = 100 * problem.gain.sign()
    straight, _, feasible = shortest(problem)
    assert not feasible.any()
    for norm in ORDER:
        assert torch.equal(nearest_on_plane(problem, norm), straight)
    sign = problem.gain.sign()[:, None]
    corner = torch.where(problem.normal * sign > 0, problem.high, problem.low)
    reach = problem.radius.minimum(corner.norm(dim=1))
    torch.testing.assert_close(straight.norm(dim=1), reach, rtol=0.01, atol=0)
    assert ((problem.normal * straight).sum(1) * sign[:, 0] > 0).all()
    cornered = corner.norm(dim=1) < problem.radius
    assert 0 < cornered.sum() < 200
    torch.testing.assert_close(straight[cornered], corner[cornered])


@pytest.mark.parametrize("norm", list(ORDER))
def test_rows_do_not_see_each_other(norm: str) -> None:
    problem = problems(30, 0.2, seed=2)
    whole = nearest_on_plane(problem, norm)
    for row in range(0, 30, 3):
        torch.testing.assert_close(nearest_on_plane(one(problem, row), norm)[0], whole[row])


@pytest.mark.parametrize("norm", list(ORDER))
def test_degenerate_problems_give_numbers(norm: str) -> None:
    """No slope, no radius, already at the image, already on the plane."""
    problem = problems(5, 0.2, seed=3)
    problem.normal[0] = 0
    problem.radius[1] = 0
    problem.away[2] = 0
    problem.gain[3:] = 0
    problem.away[4] = 0
    step = nearest_on_plane(problem, norm)
    assert torch.isfinite(step).all()
    assert (step.norm(dim=1) <= problem.radius * (1 + 1e-9)).all()
    assert (step[[0, 1, 4]].abs() < 1e-9).all()
