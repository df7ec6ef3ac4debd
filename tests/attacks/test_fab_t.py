"""FAB-T: the exact step to a plane, closed forms, and the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.attacks import fab_t
from robustbench_defenses.attacks.fab_t import FabT, difference, step_to_plane
from robustbench_defenses.core.norms import distance
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.protocol import Rows
from robustbench_defenses.engine.twin import Twin
from tests.attacks.digits import digits_network
from tests.engine import oracles

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


def cases(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Points, planes and gaps: pixels at the box, zero weights, far and near planes."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(24, 20, generator=generator, dtype=dtype)
    points[::2] = (points[::2] * 2 - 0.5).clamp(0, 1)
    plane = torch.randn(24, 20, generator=generator, dtype=dtype) ** 3
    plane[:, 3] = 0
    return points, plane, torch.linspace(-25, 25, 24, dtype=dtype)


def slowly(point: Tensor, plane: Tensor, gap: float, norm: str) -> float | None:
    """The least norm by a general solver; None where the box does not meet the plane."""
    from scipy.optimize import linprog, minimize

    x, w = point.numpy(), plane.numpy()
    size = len(x)
    low, high = -x, 1 - x
    if abs(gap) > np.maximum(np.sign(gap) * w * low, np.sign(gap) * w * high).sum():
        return None
    if norm == "linf":  # (d, t): least t with -t <= d <= t
        eye, one = np.eye(size), np.ones((size, 1))
        answer = linprog(
            np.r_[np.zeros(size), 1],
            A_ub=np.block([[eye, -one], [-eye, -one]]),
            b_ub=np.zeros(2 * size),
            A_eq=np.r_[w, 0][None],
            b_eq=[gap],
            bounds=[*zip(low, high), (0, None)],
        )
        return float(answer.fun)
    if norm == "l1":  # d = up - down
        answer = linprog(
            np.ones(2 * size),
            A_eq=np.r_[w, -w][None],
            b_eq=[gap],
            bounds=[(0, top) for top in high] + [(0, -bottom) for bottom in low],
        )
        return float(answer.fun)
    answer = minimize(
        lambda d: d @ d,
        np.zeros(size),
        jac=lambda d: 2 * d,
        bounds=list(zip(low, high)),
        constraints={"type": "eq", "fun": lambda d: w @ d - gap, "jac": lambda d: w},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return float(np.sqrt(answer.fun))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_step_to_the_plane_is_the_shortest(norm: str) -> None:
    points, plane, gap = cases()
    step = step_to_plane(points, plane, gap, norm)
    moved = points + step
    assert (moved >= -1e-12).all()
    assert (moved <= 1 + 1e-12).all()
    reached = 0
    for i in range(len(points)):
        best = slowly(points[i], plane[i], float(gap[i]), norm)
        if best is None:
            corner = ((plane[i] * gap[i]) > 0).double()
            used = plane[i] != 0
            torch.testing.assert_close(moved[i][used], corner[used])
            continue
        reached += 1
        assert float(plane[i] @ step[i]) == pytest.approx(float(gap[i]), rel=1e-9)
        length = np.linalg.norm(step[i].numpy(), ORDER[norm])
        assert length == pytest.approx(best, rel=1e-5)
    assert 8 <= reached < len(points), "both kinds of cases are wanted"


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_step_in_single_precision(norm: str) -> None:
    """As exact as the numbers allow, on images of real size."""
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(8, 784, generator=generator).mul(3).sub(1).clamp(0, 1)
    plane = torch.randn(8, 784, generator=generator) ** 3
    plane /= plane.abs().amax(1, keepdim=True)
    gap = torch.linspace(-3, 3, 8)
    step = step_to_plane(points, plane, gap, norm)
    exact = step_to_plane(points.double(), plane.double(), gap.double(), norm)
    torch.testing.assert_close((plane * step).sum(1), gap, rtol=1e-4, atol=1e-5)
    length = step.double().norm(p=ORDER[norm], dim=1)
    torch.testing.assert_close(length, exact.norm(p=ORDER[norm], dim=1), rtol=1e-4, atol=1e-7)


def test_step_where_there_is_no_way() -> None:
    """Zero gap, zero plane, infinite gap: no step, no NaN."""
    points, plane, gap = cases()
    for norm in ORDER:
        assert (step_to_plane(points, plane, gap * 0, norm) == 0).all()
        assert (step_to_plane(points, plane * 0, gap, norm) == 0).all()
        endless = step_to_plane(points, plane, gap.sign() * torch.inf, norm)
        assert torch.isfinite(endless).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_closed_form(norm: str) -> None:
    """|f| / ||w||_q on a linear model, where no pixel meets the box, but for the overshoot.

    With eta = 1.05 and beta = 0.9 the steps settle at (1.05 - 0.05 * 0.9 ...) = 1.0052 times it.
    """
    model = oracles.Linear((1, 4, 4), 3)
    images = oracles.middle_images(8, (1, 4, 4))
    labels = oracles.predicted(model, images)
    exact = model.distances(images, labels, norm)
    found = oracles.run(FabT(norm=norm), model, images, labels, ()).distance
    assert (found >= exact * (1 - 1e-9)).all()
    assert (found <= exact * 1.0053).all()


def test_each_run_has_its_target() -> None:
    count = 4
    zeros = torch.zeros(count, dtype=torch.int64)
    rivals = torch.tensor([[3, 2, 1]]).expand(count, -1)
    rows = Rows(
        example=torch.arange(count),
        images=torch.zeros(count, 1, 2, 2),
        labels=zeros,
        eps=torch.ones(count),
        target=torch.tensor([-1, -1, -1, 1]),
        key=zeros.int(),
        run=torch.arange(count),
        rivals=rivals,
    )
    logits = torch.tensor([[5.0, 1.0, 2.0, 4.0]]).expand(count, -1)
    assert difference(logits, rows).tolist() == [-1.0, -3.0, -4.0, -4.0]
    ahead = logits + torch.tensor([0.0, 0.0, 4.0, 0.0])  # a third class leads: the target must pass
    assert difference(ahead, rows).tolist() == [-1.0, 1.0, -4.0, -5.0]
    assert FabT().runs(10) == 9
    assert FabT().runs(4) == 3
    assert FabT(targets=2).runs(4) == 2
    attack = FabT()
    state = attack.start(rows)
    assert attack.finished(state, rows).tolist() == [False, False, False, True]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_target_is_reached_behind_a_third_class(norm: str) -> None:
    """Between clean image and target other classes lie; the nearest point of the target counts."""
    model, images, labels = digits_network()
    images, labels = images[:40], labels[:40]
    target = (labels + 1 + torch.arange(40) % 9) % 10
    fab = rrd.attack(model, images, labels, "fab_t", norm=norm, target=target, steps=60)
    fmn = rrd.attack(model, images, labels, "fmn", norm=norm, target=target)
    assert fmn.broken.all()
    assert fab.broken.double().mean() >= 0.9  # 0.6 with the plane between target and true class
    assert (fab.distance / fmn.distance)[fab.broken].mean() < 1.1


def test_later_targets_find_nearer_points() -> None:
    model, images, labels = digits_network()
    one = oracles.run(FabT(targets=1, steps=20), model, images[:40], labels[:40], ())
    all_of_them = oracles.run(FabT(steps=20), model, images[:40], labels[:40], ())
    assert (all_of_them.distance <= one.distance).all()
    assert (all_of_them.distance < one.distance * 0.999).any()


@pytest.mark.parametrize(("small", "fine"), [(0.0, 10), (1.1, 40)])
def test_the_last_steps_are_asked_in_float32(
    small: float, fine: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fab_t, "SMALL", small)
    model, images, labels = digits_network()
    asked: list[int] = []

    def told(fine: bool) -> Logits:
        def call(points: Tensor) -> Tensor:
            asked.append(int(fine))
            logits: Tensor = model(points)
            return logits

        return call

    twin = Twin(told(False), told(True), autocast=True)
    oracles.run(FabT(targets=1), model, images[:2], labels[:2], (), twin=twin)
    assert asked == [0] * (100 - fine) + [1] * fine


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_against_the_reference(norm: str) -> None:
    """As near as AutoAttack's FAB-T, which asks twice as often."""
    fab_pt = pytest.importorskip("pyautoattack.fab_pt")
    model, images, labels = digits_network()
    images, labels = images[:60], labels[:60]
    ours = oracles.run(FabT(norm=norm, steps=40, targets=3), model, images, labels, ()).distance
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    reference = fab_pt.FABAttack_PT(
        model, norm=name, n_restarts=1, n_iter=40, eps=1e9, targeted=True, device="cpu"
    )
    theirs = torch.full((len(images),), torch.inf, dtype=torch.float64)
    for rank in (2, 3, 4):
        reference.target_class = rank
        found = reference.attack_single_run(images, labels, is_targeted=True)
        wrong = oracles.predicted(model, found) != labels
        length = distance(found, images, norm)
        theirs = torch.where(wrong, length.minimum(theirs), theirs)
    both = torch.isfinite(ours) & torch.isfinite(theirs) & (ours > 0)
    assert torch.isfinite(ours).sum() >= torch.isfinite(theirs).sum()
    assert both.sum() >= 50
    assert (ours / theirs)[both].log().mean().exp() <= 1.02


def test_saturated_logits() -> None:
    """The same distances when all logits are a million times larger or smaller."""
    model, images, labels = digits_network()
    images, labels = images[:10].double(), labels[:10]
    plain = oracles.run(FabT(steps=10, targets=2), model.double(), images, labels, ()).distance

    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, points: Tensor) -> Tensor:
            logits: Tensor = model(points) * self.factor
            return logits

    for factor in (1e-6, 1e6):
        scaled = oracles.run(FabT(steps=10, targets=2), Scaled(factor), images, labels, ())
        torch.testing.assert_close(plain, scaled.distance, rtol=1e-6, atol=0)
