"""Directions, starts and steps of the gradient attacks, against their equations."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.attacks.gradient import ascend, steepest, step_sizes, uniform_start
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, dual, largest_allowed, project
from robustbench_defenses.engine.protocol import Answer
from tests.attacks.digits import digits_network
from tests.engine import builders, oracles

NORMS = ("linf", "l2", "l1")
ORDER = {"linf": torch.inf, "l2": 2, "l1": 1}


def random(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 1, size, generator=generator).double()


def middle(count: int, size: int) -> Tensor:
    return torch.full((count, 1, 1, size), 0.5, dtype=torch.float64)


def starts(norm: str, count: int, size: int, eps: float, dtype: torch.dtype) -> Tensor:
    """Offsets (count, size) of random starts around grey images (the box is far away)."""
    images = middle(count, size).to(dtype)
    rows = builders.rows(images, torch.zeros(count).long(), eps)
    return (uniform_start(rows, norm) - images).flatten(1).double()


# Directions.


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steepest_direction_has_unit_norm_and_reaches_the_dual_norm(norm: str) -> None:
    """Hölder: the best linear gain of a unit step is the dual norm of the gradient."""
    gradient = random(20, 50)
    direction = steepest(gradient, middle(20, 50), norm)
    length = direction.flatten(1).norm(p=ORDER[norm], dim=1)
    torch.testing.assert_close(length, torch.ones(20).double())
    gain = (direction * gradient).flatten(1).sum(1)
    expected = gradient.flatten(1).norm(p=ORDER[dual(norm)], dim=1)
    torch.testing.assert_close(gain, expected)


def test_slide_takes_equal_steps_along_the_largest_entries() -> None:
    gradient = torch.tensor([0.1, -5.0, 3.0, -0.2, 4.0, 0.0, 1.0, -2.0, 0.3, 0.4]).double()
    gradient = gradient.view(1, 1, 2, 5)
    grey = torch.full_like(gradient, 0.5)
    found = steepest(gradient, grey, "l1", quantile=0.7).flatten()  # 3 of 10
    expected = torch.tensor([0, -1 / 3, 1 / 3, 0, 1 / 3, 0, 0, 0, 0, 0]).double()
    torch.testing.assert_close(found, expected)
    one = steepest(gradient, grey, "l1", quantile=0.99).flatten()
    torch.testing.assert_close(one, torch.tensor([0, -1.0, 0, 0, 0, 0, 0, 0, 0, 0]).double())


def test_slide_leaves_pixels_without_room_alone() -> None:
    """At 0 only upwards, at 1 only downwards; what is blocked makes place for the next largest."""
    gradient = torch.tensor([-9.0, 8.0, 7.0, -6.0, 5.0, 4.0]).double().view(1, 1, 2, 3)
    points = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5, 1.0]).double().view(1, 1, 2, 3)
    found = steepest(gradient, points, "l1", quantile=1 / 2).flatten()  # 3 of 6
    expected = torch.tensor([0, 0, 1 / 3, -1 / 3, 1 / 3, 0]).double()
    torch.testing.assert_close(found, expected)
    stuck = steepest(gradient.abs(), torch.ones_like(points), "l1")
    assert (stuck == 0).all()


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 0.99, 1.0])
def test_slide_direction_has_unit_l1_norm(quantile: float) -> None:
    gradient = random(8, 784)
    direction = steepest(gradient, middle(8, 784), "l1", quantile).flatten(1)
    torch.testing.assert_close(direction.abs().sum(1), torch.ones(8).double())
    kept = max(1, round(784 * (1 - quantile)))
    assert (direction != 0).sum(1).tolist() == [kept] * 8
    assert (direction * gradient.flatten(1) >= 0).all()


def test_ties_share_the_step() -> None:
    gradient = torch.tensor([2.0, -2.0, 2.0, 1.0]).double().view(1, 1, 1, 4)
    found = steepest(gradient, torch.full_like(gradient, 0.5), "l1", quantile=0.75).flatten()
    torch.testing.assert_close(found, torch.tensor([1 / 3, -1 / 3, 1 / 3, 0]).double())


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_gives_zero_direction(norm: str) -> None:
    zero = torch.zeros(2, 3, 4, 4)
    direction = steepest(zero, zero + 0.5, norm)
    assert torch.equal(direction, zero)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1e-20, 1e-12, 1e20, 1e37])
def test_the_size_of_the_gradient_does_not_matter(norm: str, scale: float) -> None:
    """Saturated losses have float32 gradients of 1e-30: the direction is as good as any."""
    gradient = random(5, 100).float() * scale
    assert torch.isfinite(gradient).all()
    found = steepest(gradient, middle(5, 100).float(), norm)
    expected = steepest(random(5, 100).float(), middle(5, 100).float(), norm)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_directions_do_not_depend_on_batch_mates(norm: str) -> None:
    gradient, points = random(6, 60), middle(6, 60)
    gradient[3] *= 1e6
    together = steepest(gradient, points, norm)
    for i in range(6):
        alone = steepest(gradient[i : i + 1], points[i : i + 1], norm)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=0)


# Starts.


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_lie_in_the_ball(norm: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 30, 3072):
        images = torch.rand(200, 1, 1, size, generator=generator).to(dtype)
        for eps in (0.0, 0.01, 0.3, 12.0):
            rows = builders.rows(images, torch.zeros(200).long(), eps)
            points = uniform_start(rows, norm)
            assert points.dtype == dtype
            assert ((points >= 0) & (points <= 1)).all()
            limit = largest_allowed(rows.eps.double())
            assert (distance(points, images, norm) <= limit).all()


def test_linf_starts_are_uniform_in_each_coordinate() -> None:
    offsets = starts("linf", 2000, 30, 0.2, torch.float64)
    share = (offsets / 0.4 + 0.5).flatten().numpy()
    assert stats.kstest(share, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("size", [2, 10, 100])
def test_l2_starts_are_uniform_in_the_ball(size: int) -> None:
    """P(radius <= r eps) = r^d, and directions have no preferred axis."""
    offsets = starts("l2", 4000, size, 0.3, torch.float64)
    radius = offsets.norm(dim=1) / 0.3
    assert stats.kstest((radius**size).numpy(), "uniform").pvalue > 1e-3
    direction = offsets / offsets.norm(dim=1, keepdim=True)
    assert (direction.mean(0).abs() < 5 / (4000 * size) ** 0.5).all()
    second = direction.T @ direction / 4000
    torch.testing.assert_close(
        second, torch.eye(size).double() / size, rtol=0, atol=0.15 / size**0.5
    )


@pytest.mark.parametrize("size", [1, 2, 10, 100])
def test_l1_starts_are_uniform_in_the_ball(size: int) -> None:
    """The mean of ||delta||_1 / eps is d / (d + 1); P(norm <= r eps) = r^d; signs are fair."""
    offsets = starts("l1", 4000, size, 0.4, torch.float64)
    norm = offsets.abs().sum(1) / 0.4
    spread = float(norm.std()) / 4000**0.5
    assert float(norm.mean()) == pytest.approx(size / (size + 1), abs=5 * spread)
    assert stats.kstest((norm**size).numpy(), "uniform").pvalue > 1e-3
    positive = (offsets > 0).double().mean()
    assert float(positive) == pytest.approx(0.5, abs=2.5 / (4000 * size) ** 0.5)
    # Exchangeable coordinates: each holds the same share.
    shares = offsets.abs().mean(0) / offsets.abs().mean()
    torch.testing.assert_close(shares, torch.ones(size).double(), rtol=0, atol=0.1)


def test_unknown_norm_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="l0"):
        starts("l0", 1, 3, 0.1, torch.float64)


# Steps.


def test_step_sizes() -> None:
    eps = torch.tensor([0.1, 0.3]).double()
    rows = builders.rows(middle(2, 3), torch.zeros(2).long(), eps)
    assert step_sizes(rows, None, 0.25).tolist() == pytest.approx([0.025, 0.075])
    assert step_sizes(rows, 0.01, 0.25).tolist() == [0.01, 0.01]


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_steepest_then_projected(norm: str) -> None:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(6, 1, 4, 4, generator=generator).double()
    points = project(
        images + 0.1 * random(6, 16).view_as(images), images, torch.full((6,), 0.3), norm
    )
    rows = builders.rows(images, torch.zeros(6).long(), torch.linspace(0, 0.3, 6).double())
    gradient = random(6, 16, seed=5).view_as(images)
    step = torch.linspace(0.3, 0.01, 6).double()
    moved = points + step.view(-1, 1, 1, 1) * steepest(gradient, points, norm)
    expected = project(moved, images, rows.eps, norm)
    torch.testing.assert_close(ascend(points, gradient, step, rows, norm), expected)


def test_a_step_leaves_its_inputs_alone() -> None:
    images = middle(2, 4)
    rows = builders.rows(images, torch.zeros(2).long(), 0.1)
    for norm in NORMS:
        points, gradient = images.clone(), random(2, 4)
        kept = gradient.clone()
        ascend(points, gradient, torch.full((2,), 0.05).double(), rows, norm)
        assert torch.equal(points, images)
        assert torch.equal(gradient, kept)


# Whole attacks against their equations, transcribed for one image at a time.


def gradient_at(model: oracles.Linear, point: Tensor, label: Tensor) -> Tensor:
    point = point.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(point), label)
    return torch.autograd.grad(loss, point)[0]


def follow(name: str, seen: int, **settings: object) -> tuple[list[Tensor], Tensor, object]:
    """The first `seen` points of an attack on a linear model; images, the attack."""
    model = oracles.Linear((1, 4, 4), 3)
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(6)).double()
    labels = oracles.predicted(model, images)
    attack = oracles.build(name, **settings)
    rows = builders.rows(images, labels, 0.2)
    state = attack.start(rows)
    points = []
    for _ in range(seen):
        query = attack.ask(state, rows)
        points.append(query.points.clone())
        gradients = [
            gradient_at(model, query.points[i : i + 1], labels[i : i + 1]) for i in range(5)
        ]
        answer = Answer(model(query.points).detach(), torch.zeros(5), torch.cat(gradients))
        state = attack.tell(state, rows, answer)
    points.append(attack.last(state).clone())
    assert attack.finished(state, rows).all()
    return points, images, attack


@pytest.mark.parametrize(("name", "norm"), [("fgsm_linf", "linf"), ("fgsm_l2", "l2")])
def test_fgsm_is_one_whole_step(name: str, norm: str) -> None:
    points, images, _ = follow(name, 1)
    model = oracles.Linear((1, 4, 4), 3)
    gradient = gradient_at(model, images[:1], oracles.predicted(model, images[:1]))
    unit = gradient.sign() if norm == "linf" else gradient / gradient.norm()
    assert torch.equal(points[0], images)
    torch.testing.assert_close(points[1][:1], (images[:1] + 0.2 * unit).clamp(0, 1))


def test_fgsm_with_random_start_steps_from_there() -> None:
    points, images, _ = follow("fgsm_linf", 1, random_start=True, rel_step=1.25)
    assert not torch.equal(points[0], images)
    reached = (points[1] - images).abs()
    assert float(reached.max()) <= 0.2 + 1e-12


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_mim_accumulates_normalised_gradients(decay: float) -> None:
    points, images, _ = follow("mim_linf", 4, steps=4, decay=decay, rel_step=0.4)
    model = oracles.Linear((1, 4, 4), 3)
    for i in range(5):
        x, g = images[i : i + 1], torch.zeros(1, 1, 4, 4).double()
        label = oracles.predicted(model, x)
        z = x.clone()
        for t in range(4):
            torch.testing.assert_close(points[t][i : i + 1], z)
            gradient = gradient_at(model, z, label)
            g = decay * g + gradient / gradient.abs().sum()
            z = z + 0.08 * g.sign()
            z = torch.minimum(torch.maximum(z, x - 0.2), x + 0.2).clamp(0, 1)
        torch.testing.assert_close(points[4][i : i + 1], z)


def test_bim_is_mim_without_a_past() -> None:
    ours, _, attack = follow("bim", 4, steps=4)
    mim, _, _ = follow("mim_linf", 4, steps=4, decay=0.0)
    assert attack.decay == 0  # type: ignore[attr-defined]
    for a, b in zip(ours, mim):
        assert torch.equal(a, b)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_steps(norm: str) -> None:
    points, images, _ = follow(f"pgd_{norm}", 5, steps=5)
    model = oracles.Linear((1, 4, 4), 3)
    rows = builders.rows(images, torch.zeros(5).long(), 0.2)
    torch.testing.assert_close(points[0], uniform_start(rows, norm))
    eps = torch.tensor([0.2]).double()
    for i in range(5):
        x = images[i : i + 1]
        label = oracles.predicted(model, x)
        z = points[0][i : i + 1]
        for t in range(5):
            gradient = gradient_at(model, z, label)
            unit = gradient.sign() if norm == "linf" else gradient / gradient.norm()
            z = project(z + 2.5 / 5 * 0.2 * unit, x, eps, norm)
            torch.testing.assert_close(points[t + 1][i : i + 1], z)


def test_pgd_l1_halves_its_step_at_half_and_three_quarters() -> None:
    """Alone against a gradient along one pixel, from a start at the image: steps are visible."""
    images = torch.zeros(1, 1, 1, 400).double()
    rows = builders.rows(images, torch.zeros(1).long(), 8.0)
    attack = oracles.build("pgd_l1", steps=8, random_start=False, quantile=0.99)
    state = attack.start(rows)
    gradient = torch.linspace(1, 2, 400).double().view_as(images)
    lengths = []
    for _ in range(8):
        before = attack.last(state).clone()
        flat = Answer(torch.zeros(1, 2), torch.zeros(1), gradient * (before == 0))
        state = attack.tell(state, rows, flat)
        # Project back to the image: only the size of the proposed step is of interest.
        lengths.append(float((attack.last(state) - before).abs().sum()))
        state.points = images.clone()
    assert lengths == pytest.approx([2, 2, 2, 2, 1, 1, 0.5, 0.5])
    constant = oracles.build("pgd_l1", steps=8, random_start=False, rel_step=0.25)
    assert constant.travel(8.0) == 16


def test_declared_travel() -> None:
    assert oracles.build("fgsm_linf").travel(0.3) == pytest.approx(0.3)
    assert oracles.build("pgd_linf", steps=40).travel(0.3) == pytest.approx(0.75)
    assert oracles.build("pgd_linf", steps=20, step_size=0.007).travel(0.4) == pytest.approx(0.14)
    assert oracles.build("pgd_linf", steps=10, rel_step=0.1).travel(0.3) == pytest.approx(0.3)
    assert oracles.build("bim", steps=10).travel(0.3) == pytest.approx(0.3)
    assert oracles.build("mim_linf", steps=10, step_size=0.01).travel(0.3) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2"])
def test_default_steps_cross_the_whole_ball(name: str) -> None:
    """The step rule must reach the boundary from anywhere: steps x step >= 2 eps."""
    for steps in (1, 7, 40, 100):
        assert oracles.build(name, steps=steps).travel(0.3) >= 0.6


def test_restarts_begin_elsewhere() -> None:
    """Seen through the engine: two runs of one example ask about different first points."""
    asked = builders.Recorder(oracles.Linear((1, 4, 4), 3))
    images = oracles.middle_images(1, (1, 4, 4))
    labels = oracles.predicted(asked.model, images)  # type: ignore[arg-type]
    attack = oracles.build("pgd_linf", steps=1, restarts=3)
    builders.search(attack, asked, images, labels, (1e-4,), batch_size=1)
    first = [points for points in asked.asked[1:] if len(points) == 1][::2]
    assert len(first) == 3
    assert len({tuple(points.flatten().tolist()) for points in first}) == 3


def test_one_step_attacks_have_no_restarts() -> None:
    assert oracles.build("fgsm_linf", restarts=5).restarts == 1
    assert oracles.build("mim_linf", restarts=5).restarts == 1


@pytest.mark.parametrize("attack", ["pgd", "ddn", "deepfool_l2", "apgd_ce", "fmn"])
def test_a_root_in_front_of_the_network(attack: str) -> None:
    """The slope of a root is infinite at black pixels; points stay finite and are still found."""
    model, images, labels = digits_network()

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.sqrt().square())

    images, labels = images[:20], labels[:20]
    assert (images == 0).any()
    eps = 2.0 if attack == "apgd_ce" or attack == "pgd" else None
    norm = "l2" if eps is not None else None
    made = rrd.attack(Root(), images, labels, attack, eps=eps, norm=norm)
    assert made.images.isfinite().all()
    assert made.broken.double().mean() > 0.8


def test_flat_vectors_as_images() -> None:
    """(N, D) works where no attack draws windows; where one does, it says so."""
    torch.manual_seed(0)
    model, images = nn.Linear(30, 4), torch.rand(6, 30)
    labels = model(images).argmax(1)
    assert rrd.attack(model, images, labels, "deepfool_l2").broken.all()
    with pytest.raises(UserError, match="windows of images"):
        rrd.attack(model, images, labels, "square", eps=0.1)
