"""Randomness by counter: equal for equal keys, uniform, and independent of everything else."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from robustbench_defenses.core import rng

GOLDEN_KEYS = [-729520373, -1143813290]
GOLDEN_UNIFORM = [[6225219, 3568565], [1021755, 12946396]]
GOLDEN_NAME = 3376493306


def keys(count: int, seed: int = 0, name: str = "test") -> Tensor:
    return rng.row_keys(seed, name, torch.arange(count))


def chi_square(values: Tensor, cells: int = 64) -> float:
    """p-value of uniformity of numbers in [0, 1)."""
    counts = torch.histc(values.flatten().double(), bins=cells, min=0, max=1)
    return float(stats.chisquare(counts.numpy()).pvalue)


def test_golden_numbers() -> None:
    """The stream is part of what a stored result means: it may not move unnoticed."""
    key = rng.run_keys(0, "pgd_linf", torch.tensor([0, 1]), 0)
    assert key.dtype == torch.int32
    assert key.tolist() == GOLDEN_KEYS
    assert (rng.uniform(key, (2,)) * (1 << 24)).long().tolist() == GOLDEN_UNIFORM
    assert rng.name_key(0, "pgd_linf") == GOLDEN_NAME


def test_numbers_lie_in_the_half_open_interval() -> None:
    values = rng.uniform(keys(200), (1000,))
    assert values.min() >= 0
    assert values.max() < 1
    assert values.max() > 0.9999
    assert values.min() < 0.0001


def test_shape_and_type() -> None:
    values = rng.uniform(keys(3), (2, 4, 5), torch.float64)
    assert values.shape == (3, 2, 4, 5)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values.float(), rng.uniform(keys(3), (2, 4, 5)))


def test_a_row_depends_on_its_own_key_only() -> None:
    key = keys(50)
    together = rng.uniform(key, (7, 3))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rng.uniform(key[order], (7, 3)), together[order])
    assert torch.equal(rng.uniform(key[31:32], (7, 3)), together[31:32])
    assert torch.equal(rng.normal(key[31:32], (7, 3)), rng.normal(key, (7, 3))[31:32])
    assert torch.equal(rng.integers(key, 9)[order], rng.integers(key[order], 9))


def test_keys_depend_on_example_number_not_on_position() -> None:
    picked = torch.tensor([40, 3, 17])
    assert torch.equal(rng.row_keys(5, "a", picked), rng.row_keys(5, "a", torch.arange(50))[picked])


def test_asking_leaves_the_keys_alone() -> None:
    key = keys(4)
    before = key.clone()
    rng.uniform(key, (3,))
    rng.normal(key, (3,))
    rng.fold(key, 2)
    assert torch.equal(key, before)


def test_seed_name_and_restart_give_other_keys() -> None:
    index = torch.arange(1000)
    sets = [
        rng.run_keys(0, "a", index),
        rng.run_keys(1, "a", index),
        rng.run_keys(-1, "a", index),
        rng.run_keys(0, "b", index),
        rng.run_keys(0, "a", index, 1),
        rng.run_keys(0, "a", index, 2),
    ]
    assert len(torch.cat(sets).unique()) == 6000


def test_restart_may_be_a_tensor_of_any_integer_type() -> None:
    index = torch.arange(4)
    for dtype in (torch.int32, torch.int64):
        restart = torch.tensor([0, 1, 2, 3], dtype=dtype)
        found = rng.run_keys(0, "a", index, restart)
        assert found.dtype == torch.int32
        for i in range(4):
            assert found[i] == rng.run_keys(0, "a", index[i : i + 1], i)[0]
        folded = rng.fold(found, restart)
        assert folded.dtype == torch.int32
        assert folded[2] == rng.fold(found[2:3], 2)[0]


def test_fold_is_a_bijection_of_values() -> None:
    key = torch.full((1 << 16,), 12345, dtype=torch.int32)
    assert len(rng.fold(key, torch.arange(1 << 16)).unique()) == 1 << 16


@pytest.mark.parametrize("axis", ["within a row", "across rows", "across restarts"])
def test_uniformity(axis: str) -> None:
    if axis == "within a row":
        values = rng.uniform(keys(1), (200_000,))
    elif axis == "across rows":
        values = rng.uniform(keys(200_000), (1,))
    else:
        restart = torch.arange(200_000)
        values = rng.uniform(rng.run_keys(0, "a", torch.zeros_like(restart), restart), (1,))
    assert chi_square(values) > 1e-3
    assert chi_square(values, cells=1000) > 1e-3
    low_bits = (values * (1 << 24)).long() % 64  # not only the leading bits are random
    assert chi_square(low_bits / 64 + 1 / 128) > 1e-3


def test_neighbours_are_independent() -> None:
    """Pairs (position, next position), (row, next row), (restart, next restart): 2-d chi-square."""
    rows = rng.uniform(keys(400), (400,))
    later = rng.uniform(rng.run_keys(0, "test", torch.arange(400), 1), (400,))
    first = rng.uniform(rng.run_keys(0, "test", torch.arange(400), 0), (400,))
    for a, b in ((rows[:, :-1], rows[:, 1:]), (rows[:-1], rows[1:]), (first, later)):
        cell = (a * 16).long() * 16 + (b * 16).long()
        counts = torch.bincount(cell.flatten(), minlength=256)
        assert float(stats.chisquare(counts.numpy()).pvalue) > 1e-3
        pair = torch.stack([a.flatten().double(), b.flatten().double()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.01


def test_related_keys_do_not_share_shifted_streams() -> None:
    """Keys that differ by the step between positions must not give each other's numbers."""
    key = torch.tensor([1000, 1000 + rng._GOLDEN], dtype=torch.int32)
    a, b = rng.uniform(key, (5000,))
    for shift in (-1, 1):
        assert (a.roll(shift) == b).float().mean() < 0.01


def test_normal_numbers() -> None:
    values = rng.normal(keys(300), (500,))
    assert torch.isfinite(values).all()
    assert float(stats.kstest(values.flatten().numpy(), "norm").pvalue) > 1e-3
    assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float(values.double().pow(4).mean()) == pytest.approx(3, abs=0.1)
    assert rng.normal(keys(2), (3,), torch.float64).dtype == torch.float64
    a, b = values[:, :-1].flatten().double(), values[:, 1:].flatten().double()
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.01


def test_normal_is_independent_of_uniform_of_the_same_key() -> None:
    """Signs of the one against size of the other: starts use both from one row."""
    key = keys(300)
    u = rng.uniform(rng.fold(key, 1), (300,)).flatten().double()
    z = rng.normal(key, (300,)).flatten().double()
    assert abs(float(torch.corrcoef(torch.stack([u, z]))[0, 1])) < 0.02


def test_integers_cover_their_range() -> None:
    values = rng.integers(keys(9000), 9)
    assert values.dtype == torch.int64
    counts = torch.bincount(values, minlength=9)
    assert len(counts) == 9
    assert float(stats.chisquare(counts.numpy()).pvalue) > 1e-3
    high = torch.tensor([1, 2, 1000]).repeat(1000)
    bounded = rng.integers(keys(3000), high)
    assert (bounded < high).all()
    assert (bounded >= 0).all()
    assert bounded[2::3].max() > 900


def test_name_keys_are_32_bit_numbers_of_the_whole_tuple() -> None:
    found = {rng.name_key(seed, name) for seed in range(50) for name in ("a", "b", "ab")}
    assert len(found) == 150
    assert all(0 <= key < 1 << 32 for key in found)
    assert rng.name_key(1, "a") != rng.name_key("1a")


def test_the_global_random_state_is_not_touched() -> None:
    before = torch.random.get_rng_state()
    rng.uniform(keys(4), (3,))
    rng.normal(keys(4), (3,))
    rng.integers(keys(4), 5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_hash_avalanche() -> None:
    """Each flipped bit of a key flips about half of the bits of a number."""
    key = keys(2000)
    base = (rng.uniform(key, (1,), torch.float64)[:, 0] * (1 << 24)).long()
    for bit in range(32):
        flip = -(1 << 31) if bit == 31 else 1 << bit
        other = (rng.uniform(key ^ flip, (1,), torch.float64)[:, 0] * (1 << 24)).long()
        changed = sum(float((((base ^ other) >> b) & 1).double().mean()) for b in range(24))
        assert math.isclose(changed, 12, abs_tol=0.5)
