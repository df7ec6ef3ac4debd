"""Norms, projections onto ball and box, and budgets as users write them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import (
    add_inwards,
    check_eps,
    distance,
    dual,
    largest_allowed,
    parse_eps,
    parse_grid,
    project,
    project_l1_box,
)

NORMS = ("linf", "l2", "l1")
UNIT = st.floats(0, 1, allow_subnormal=False)
ANY = st.floats(-2, 3, allow_subnormal=False)


def one(values: list[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def budget(eps: float, count: int = 1) -> Tensor:
    return torch.full((count,), eps, dtype=torch.float64)


def bisected(delta: Tensor, centres: Tensor, eps: float) -> Tensor:
    """The threshold of the L1 projection by 200 halvings, for one image in float64."""
    room = torch.where(delta > 0, 1 - centres, centres)

    def moved(shift: float) -> Tensor:
        return (delta.abs() - shift).clamp_min(0).minimum(room)

    low, high = 0.0, float(delta.abs().max())
    if float(moved(0.0).sum()) <= eps:
        return delta.sign() * moved(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        if float(moved(middle).sum()) > eps:
            low = middle
        else:
            high = middle
    return delta.sign() * moved(high)


def by_sorting(delta: Tensor, centres: Tensor, eps: Tensor) -> Tensor:
    """The L1 projection in float64 by sorting all knots (N, 2D) of the piecewise linear sum."""
    size = delta.abs()
    room = torch.where(delta > 0, 1 - centres, centres).clamp_min(0)
    start, end = (size - room).clamp_min(0), size  # a term falls with slope -1 on [start, end]
    total = size.minimum(room).sum(1)
    knots, order = torch.cat([start, end], 1).sort(1)
    change = torch.cat([torch.ones_like(start), -torch.ones_like(end)], 1).gather(1, order)
    slope = change.cumsum(1)  # number of falling terms right of each knot
    fallen = (slope[:, :-1] * knots.diff(dim=1)).cumsum(1)
    left = total[:, None] - torch.cat([torch.zeros_like(total)[:, None], fallen], 1)
    at = ((left > eps[:, None]).sum(1).clamp_min(1) - 1)[:, None]  # last knot above the budget
    excess = left.gather(1, at) - eps[:, None]
    shift = knots.gather(1, at) + excess / slope.gather(1, at).clamp_min(1)
    shift = torch.where((total <= eps)[:, None], torch.zeros_like(shift), shift)
    return delta.sign() * (size - shift).clamp_min(0).minimum(room)


def random_feasible(centre: Tensor, eps: float, norm: str, count: int, seed: int) -> Tensor:
    """Points (count, D) inside ball and box: random ones, shrunk towards the centre."""
    generator = torch.Generator().manual_seed(seed)
    size = len(centre)
    points = torch.rand(count, size, generator=generator, dtype=torch.float64)
    # Some far corners of the box, some sparse moves: uniform points alone are all alike.
    points[::3] = points[::3].round()
    keep = torch.rand(count, size, generator=generator) < torch.rand(count, 1, generator=generator)
    delta = torch.where(keep, points - centre, 0.0)
    length = distance(delta, torch.zeros_like(delta), norm).clamp_min(1e-12)
    return centre + delta * (eps / length).clamp_max(1)[:, None]


def test_distance_of_each_norm() -> None:
    a, b = one([0.5, 0.25, 1.0, 0.0]), one([0.0, 0.5, 1.0, 0.0])
    assert distance(a, b, "linf").item() == 0.5
    assert distance(a, b, "l2").item() == pytest.approx(0.3125**0.5, rel=1e-12)
    assert distance(a, b, "l1").item() == 0.75
    assert distance(a, b, "l0").item() == 2
    with pytest.raises(ValueError, match="l3"):
        distance(a, b, "l3")


def test_distance_sums_in_float64() -> None:
    """A float32 sum of 150,528 equal terms is off by far more than the tolerance."""
    a = torch.full((1, 3, 224, 224), 0.1)
    exact = float(torch.tensor(0.1).double()) * 150528
    assert distance(a, torch.zeros_like(a), "l1").item() == pytest.approx(exact, rel=1e-12)


def test_distance_runs_over_all_axes() -> None:
    a = torch.zeros(2, 3, 4, 5)
    a[1, 2, 3, 4], a[1, 0, 0, 0] = 0.75, 0.5
    assert distance(a, torch.zeros_like(a), "l1").tolist() == [0, 1.25]


def test_tolerance_is_relative_and_absolute() -> None:
    assert largest_allowed(one([0.0, 10.0])).tolist() == [[1e-7, 10 * (1 + 1e-6) + 1e-7]]


def test_dual_norms() -> None:
    assert [dual(norm) for norm in NORMS] == ["l1", "l2", "linf"]


def test_l1_projection_golden_number() -> None:
    point = project(one([1.5, 0.6, 0.3, 0.5]), one([0.9, 0.1, 0.5, 0.5]), budget(0.5), "l1")
    torch.testing.assert_close(point, one([1.0, 0.45, 0.45, 0.5]), rtol=0, atol=1e-12)
    assert distance(point, one([0.9, 0.1, 0.5, 0.5]), "l1").item() == pytest.approx(0.5, abs=1e-12)


def test_l2_projection_golden_number() -> None:
    """Scale to the sphere, then clip: the usual rule, whose result is 0.195 long here."""
    centre = one([0.9, 0.1, 0.5])
    point = project(one([1.9, 0.7, 0.2]), centre, budget(0.3), "l2")
    scale = 0.3 / (1.0 + 0.36 + 0.09) ** 0.5
    expected = one([1.0, 0.1 + 0.6 * scale, 0.5 - 0.3 * scale])
    torch.testing.assert_close(point, expected, rtol=0, atol=1e-12)
    assert distance(point, centre, "l2").item() == pytest.approx(0.195, abs=5e-4)


def test_linf_projection_golden_number() -> None:
    point = project(one([1.9, 0.7, 0.2]), one([0.9, 0.1, 0.5]), budget(0.25), "linf")
    torch.testing.assert_close(point, one([1.0, 0.35, 0.25]), rtol=0, atol=1e-15)


def test_unknown_norm_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="l0"):
        project(one([0.5]), one([0.5]), budget(0.1), "l0")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(UNIT, ANY), min_size=1, max_size=12), st.floats(0, 6))
def test_l1_projection_equals_bisection(pairs: list[tuple[float, float]], eps: float) -> None:
    centre, point = one([x for x, _ in pairs]), one([u for _, u in pairs])
    found = project_l1_box(point - centre, centre, budget(eps))
    torch.testing.assert_close(found, bisected(point - centre, centre, eps), rtol=1e-10, atol=1e-10)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(UNIT, ANY, UNIT, ANY), min_size=1, max_size=12),
    st.tuples(st.floats(0, 6), st.floats(0, 6)),
)
def test_l1_projection_equals_the_sorted_form(
    entries: list[tuple[float, float, float, float]], eps: tuple[float, float]
) -> None:
    """Two rows with needs of their own: each ends on its exact piece."""
    centres = torch.tensor([[e[0] for e in entries], [e[2] for e in entries]], dtype=torch.float64)
    points = torch.tensor([[e[1] for e in entries], [e[3] for e in entries]], dtype=torch.float64)
    radius = torch.tensor(eps, dtype=torch.float64)
    found = project_l1_box(points - centres, centres, radius)
    expected = by_sorting(points - centres, centres, radius)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [1, 64, 3072])
@pytest.mark.parametrize("spread", [1e-3, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("levels", [0, 4])
def test_l1_projection_of_images_equals_the_sorted_form(
    size: int, spread: float, levels: int
) -> None:
    """Black and white pixels, ties of coarse levels, rows far from and inside the ball."""
    generator = torch.Generator().manual_seed(size)
    centres = (1.5 * torch.rand(40, size, generator=generator).double() - 0.25).clamp(0, 1)
    delta = spread * torch.randn(40, size, generator=generator).double()
    if levels:
        centres, delta = (
            (levels * centres).round() / levels,
            (levels * delta / spread).round() * spread / levels,
        )
    eps = torch.logspace(-3, 3, 40, dtype=torch.float64)
    eps[::10] = 0
    found = project_l1_box(delta, centres, eps)
    torch.testing.assert_close(found, by_sorting(delta, centres, eps), rtol=1e-9, atol=1e-9)
    single = project_l1_box(delta.float(), centres.float(), eps.float())
    torch.testing.assert_close(single, found.float(), rtol=0, atol=2e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(UNIT, ANY), min_size=1, max_size=12),
    st.floats(0, 3),
    st.sampled_from(NORMS),
)
def test_projections_are_feasible_and_idempotent(
    pairs: list[tuple[float, float]], eps: float, norm: str
) -> None:
    centre, point = one([x for x, _ in pairs]), one([u for _, u in pairs])
    found = project(point, centre, budget(eps), norm)
    assert ((found >= 0) & (found <= 1)).all()
    assert distance(found, centre, norm).item() <= eps + 1e-12
    again = project(found, centre, budget(eps), norm)
    torch.testing.assert_close(again, found, rtol=0, atol=1e-12)
    inside = project(centre, centre, budget(eps), norm)
    torch.testing.assert_close(inside, centre, rtol=0, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(UNIT, ANY), min_size=2, max_size=8),
    st.floats(0.01, 2),
    st.sampled_from(["linf", "l1"]),
    st.integers(0, 1000),
)
def test_nearest_point(pairs: list[tuple[float, float]], eps: float, norm: str, seed: int) -> None:
    """No feasible point lies nearer (Euclidean) than the projection."""
    centre, point = one([x for x, _ in pairs]), one([u for _, u in pairs])
    nearest = distance(project(point, centre, budget(eps), norm), point, "l2")
    others = random_feasible(centre[0], eps, norm, 300, seed)
    assert (distance(others, point, "l2") >= nearest - 1e-9).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [784, 3072, 150528])
def test_float32_projections_stay_within_the_tolerance(norm: str, size: int) -> None:
    """Rounding thousands of sums to float32 must not push a point out of its ball."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(2, size, generator=generator)
    noise = torch.randn(2, size, generator=generator)
    for eps in (0.01, 1.0, 12.0):
        for scale in (3 * eps / size, 0.05):
            radius = torch.full((2,), eps)
            points = project(centres + scale * noise, centres, radius, norm)
            assert points.dtype == torch.float32
            assert ((points >= 0) & (points <= 1)).all()
            assert (distance(points, centres, norm) <= largest_allowed(radius.double())).all()


def test_add_inwards_never_lengthens_a_step() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.rand(10000, generator=generator)
    delta = 1e-4 * torch.randn(10000, generator=generator)
    points = add_inwards(centres, delta)
    moved = (points.double() - centres.double()).abs()
    assert (moved <= delta.double().abs()).all()
    torch.testing.assert_close(points, centres + delta, rtol=0, atol=1.2e-7)
    rounded = (centres + delta).double() - centres.double()
    assert (rounded.abs() > delta.double().abs()).any()  # plain addition does lengthen some


@pytest.mark.parametrize("norm", NORMS)
def test_every_row_has_its_own_budget(norm: str) -> None:
    generator = torch.Generator().manual_seed(2)
    centres = torch.rand(5, 2, 3, 3, generator=generator).double()
    points = centres + torch.randn(5, 2, 3, 3, generator=generator).double()
    eps = torch.tensor([0.0, 0.1, 0.3, 0.7, 50.0], dtype=torch.float64)
    together = project(points, centres, eps, norm)
    for i in range(5):
        alone = project(points[i : i + 1], centres[i : i + 1], eps[i : i + 1], norm)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-14)
    torch.testing.assert_close(together[0], centres[0], rtol=0, atol=0)
    torch.testing.assert_close(
        together[4], points[4].clamp(0, 1) if norm != "linf" else together[4]
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.3", 0.3),
        ("0", 0.0),
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("1.5/255", 1.5 / 255),
        ("1e-3", 1e-3),
        ("1", 1.0),
    ],
)
def test_parse_eps(text: str, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9/0", "divides by zero"),
        ("-0.1", "is negative"),
        ("-8/255", "is negative"),
        ("nan", "not a finite number"),
        ("inf", "not a finite number"),
        ("1e400", "not a finite number"),
        ("", "is not a number"),
        ("a", "is not a number"),
        ("1/2/3", "is not a number"),
        ("8/", "is not a number"),
        ("1" + "0" * 400 + "/3", "is not a number"),
        ("0.3,0.4", "is not a number"),
    ],
)
def test_nonsense_budgets_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_eps(text)


@pytest.mark.parametrize(("text", "hint"), [("8", "8/255"), ("1.5", "1.5/255"), ("255", "255/255")])
def test_linf_budget_in_levels_gets_a_hint_that_works(text: str, hint: str) -> None:
    with pytest.raises(UserError, match="larger than the pixel range") as caught:
        parse_eps(text)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f"--eps {hint}")
    assert parse_eps(hint) <= 1


@pytest.mark.parametrize("text", ["300", "16/8"])
def test_no_hint_where_it_would_mislead(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_eps(text)
    assert caught.value.hint is None


def test_other_norms_may_be_large() -> None:
    assert parse_eps("12", "l1") == 12
    assert check_eps(3.0, "l2") == 3


def test_grid_by_start_stop_step() -> None:
    grid = parse_grid("0:0.5:0.05")
    assert grid == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert parse_grid("0.1:0.1:1") == [0.1]
    assert parse_grid("0:0.5:0.2") == [0, 0.2, 0.4]
    assert parse_grid("0:8/255:2/255") == [round(2 * i / 255, 12) for i in range(5)]


def test_grid_by_list() -> None:
    assert parse_grid("0.1, 0,8/255 0.1") == [0, 8 / 255, 0.1]
    assert parse_grid("1,12", "l1") == [1, 12]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" , ", "empty"),
        ("0:0.5", "start:stop:step"),
        ("0:1:0.1:2", "start:stop:step"),
        ("0.5:0.1:0.1", "is empty"),
        ("0:1:0", "is empty"),
        ("0:1:-0.1", "negative"),
        ("0:1:0.0001", "10001 points"),
        ("0:1:1e-320", "points; at most 1000"),
        ("0,2", "larger than the pixel range"),
        ("0,,x", "not a number"),
    ],
)
def test_nonsense_grids_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_grid(text)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.integers(1, 100), st.integers(1, 40))
def test_grids_rise_and_keep_both_ends(start: int, step: int, count: int) -> None:
    """Ends written as decimals are met exactly, whatever the rounding of start + i * step."""
    low, width = start / 1000, step / 1000
    high = (start + step * count) / 1000
    grid = parse_grid(f"{low}:{high}:{width}", "l2")
    assert len(grid) == count + 1
    assert grid[0] == low
    assert grid[-1] == high
    assert all(a < b for a, b in itertools.pairwise(grid))
