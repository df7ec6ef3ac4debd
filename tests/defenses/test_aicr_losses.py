"""AICR's loss terms against literal transcriptions, values and gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustbench_defenses.defenses.aicr_losses import (
    attract,
    cross_correlation,
    distances,
    projector,
    redundancy,
    repulse,
    standardise,
    variance,
)

from . import transcription

LABELS = [0, 2, 1, 2, 0, 2, 1]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def same(ours: Callable[..., Tensor], literal: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Equal values and equal gradients to every input."""
    for function in (ours, literal):
        assert function(*inputs).ndim == 0
    torch.testing.assert_close(ours(*inputs), literal(*inputs), rtol=1e-10, atol=1e-12)
    mine = torch.autograd.grad(ours(*inputs), inputs)
    printed = torch.autograd.grad(literal(*inputs), inputs)
    for a, b in zip(mine, printed):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_equation_8_as_printed() -> None:
    labels = torch.tensor(LABELS + LABELS)

    def ours(h: Tensor, hp: Tensor, c: Tensor) -> Tensor:
        both = torch.cat([h, hp])
        return 2 * attract(both, c, labels, False) - 2 * repulse(both, c, labels, False)

    def literal(h: Tensor, hp: Tensor, c: Tensor) -> Tensor:
        return transcription.attract_repulse_equation_8(h, hp, c, LABELS)

    same(ours, literal, numbers(7, 5), numbers(7, 5, seed=1), numbers(3, 5, seed=2))


def test_squared_pull_and_push_as_in_the_code() -> None:
    labels = torch.tensor(LABELS)
    for which in (0, 1):

        def ours(f: Tensor, a: Tensor, which: int = which) -> Tensor:
            return (attract, repulse)[which](f, a, labels, True)

        def literal(f: Tensor, a: Tensor, which: int = which) -> Tensor:
            return transcription.squared_pull_and_push(f, a, a, LABELS)[which]

        same(ours, literal, numbers(7, 4), numbers(3, 4, seed=1))


def test_equations_10_and_11() -> None:
    def ours(u: Tensor, up: Tensor) -> Tensor:
        return variance(cross_correlation(u, up), 0.005)

    def literal(u: Tensor, up: Tensor) -> Tensor:
        return transcription.barlow_equations_10_and_11(u, up, 0.005)

    same(ours, literal, numbers(7, 5), numbers(7, 5, seed=1))


@pytest.mark.parametrize("width", [5, 13, 14, 40])
def test_wide_projections_without_their_matrix(width: int) -> None:
    def ours(u: Tensor, up: Tensor) -> Tensor:
        return redundancy(u, up, 0.005)

    def literal(u: Tensor, up: Tensor) -> Tensor:
        return transcription.barlow_equations_10_and_11(u, up, 0.005)

    same(ours, literal, numbers(7, width), numbers(7, width, seed=1))


def test_wide_projections_keep_their_digits_in_float32() -> None:
    u, up = (numbers(256, 1024, seed=seed).detach() for seed in (0, 1))
    exact = redundancy(u, 0.9 * u + 0.1 * up, 0.005).item()
    single = redundancy(u.float(), (0.9 * u + 0.1 * up).float(), 0.005).item()
    assert single == pytest.approx(exact, rel=1e-5)


def test_distances_keep_their_digits_far_from_the_origin() -> None:
    features = torch.full((1, 64), 1000.0)
    centres = features + 0.001
    expected = 0.001 * 8  # sqrt(64)
    found = distances(features, centres, squared=False).item()
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("squared", [False, True])
def test_a_feature_on_its_centre_has_a_finite_gradient(squared: bool) -> None:
    features = torch.zeros(2, 3, requires_grad=True)
    attract(features, torch.zeros(2, 3), torch.tensor([0, 1]), squared).backward()
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros(2, 3))


def white(rows: int, columns: int) -> Tensor:
    """Columns of mean 0, variance 1, mutually uncorrelated."""
    values = numbers(rows, columns + 1).detach()
    values[:, 0] = 1.0
    q, _ = torch.linalg.qr(values)
    return q[:, 1:] * rows**0.5


def test_barlow_equal_white_views_cost_nothing() -> None:
    z = white(50, 8)
    assert variance(cross_correlation(z, z), 0.005).item() == pytest.approx(0.0, abs=1e-8)


def test_barlow_independent_views_cost_about_their_width() -> None:
    size, width = 4000, 20
    q = cross_correlation(numbers(size, width), numbers(size, width, seed=1))
    expected = width + width / size + 0.005 * width * (width - 1) / size
    assert variance(q, 0.005).item() == pytest.approx(expected, rel=0.1)
    assert q.abs().max() < 0.1


def test_barlow_ignores_scale_and_shift() -> None:
    u, up = numbers(30, 6).detach() * 100, numbers(30, 6, seed=1).detach() * 100
    plain = variance(cross_correlation(u, up), 0.005)
    moved = variance(cross_correlation(3 * u + 7, up), 0.005)
    torch.testing.assert_close(moved, plain, rtol=1e-6, atol=0)


def test_barlow_a_flipped_coordinate_costs_four() -> None:
    z = white(50, 8)
    flipped = z.clone()
    flipped[:, 3] *= -1
    q = cross_correlation(z, flipped)
    assert q[3, 3].item() == pytest.approx(-1.0, abs=1e-4)
    assert variance(q, 0.005).item() == pytest.approx(4.0, abs=1e-3)


def test_barlow_swapping_the_views_changes_nothing() -> None:
    u, up = numbers(9, 4), numbers(9, 4, seed=1)
    q, swapped = cross_correlation(u, up), cross_correlation(up, u)
    torch.testing.assert_close(q, swapped.T)
    torch.testing.assert_close(variance(q, 0.3), variance(swapped, 0.3))


def test_barlow_rank_floor() -> None:
    # Rank at most 4: the off-diagonal sum cannot fall below d^2/r - d.
    wide = numbers(40, 4).detach() @ numbers(4, 32, seed=1).detach()
    q = cross_correlation(wide, wide)
    off = variance(q, 1.0) - variance(q, 0.0)
    assert off.item() >= 32**2 / 4 - 32 - 1e-3


def test_the_cross_correlation_divides_by_the_true_batch() -> None:
    z = white(50, 4)
    assert cross_correlation(z[:50], z[:50]).diagonal().min() > 0.999
    short = standardise(numbers(6, 4).detach())
    assert cross_correlation(short, short).diagonal().min() > 0.99
    with pytest.raises(ValueError, match="single"):
        cross_correlation(z[:1], z[:1])


@pytest.mark.parametrize(("depth", "linear_maps"), [(0, 0), (1, 1), (2, 2), (3, 3)])
def test_projector_depth(depth: int, linear_maps: int) -> None:
    made = projector(12, 20, depth)
    maps = [layer for layer in made if isinstance(layer, torch.nn.Linear)]
    assert len(maps) == linear_maps
    assert all(layer.bias is None for layer in maps)
    assert made(torch.rand(5, 12)).shape == (5, 20 if depth else 12)
