"""APGD: checkpoints, rules, steps; step by step against the reference, and its strength."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.attacks.apgd import APGD, Momentum, State, _sparse_direction
from robustbench_defenses.core import rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed, project
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.protocol import Answer, Rows
from tests.engine import builders, oracles

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
# Budgets at which about half of the digits network's images break.
EPS = {"linf": 0.12, "l2": 0.6, "l1": 2.0}
SHAPE = (1, 4, 4)


def some_rows(count: int = 3, eps: float = 0.1) -> Rows:
    images = oracles.middle_images(count, SHAPE)
    return builders.rows(images, torch.zeros(count, dtype=torch.int64), eps)


def answers(rows: Rows, losses: list[float], seed: int = 0) -> list[Answer]:
    """One answer per loss, the same loss for every row, with random gradients."""
    generator = torch.Generator().manual_seed(seed)
    count = len(rows.labels)
    return [
        Answer(
            torch.zeros(count, 3).double(),
            torch.full((count,), loss).double(),
            torch.randn(rows.images.shape, generator=generator).double(),
        )
        for loss in losses
    ]


def states(attack: APGD, rows: Rows, losses: list[float]) -> list[State]:
    """The start and the state after each told loss."""
    state = attack.start(rows)
    result = [state]
    for answer in answers(rows, losses):
        # A copy keeps what is remembered here apart from what an attack changes in place.
        copy = replace(state, best=state.best.clone(), best_gradient=state.best_gradient.clone())
        state = attack.tell(copy, rows, answer)
        result.append(state)
    return result


def halvings(steps: int, losses: list[float], rho: float = 0.75) -> list[int]:
    """After how many updates the step size was halved, under the given losses of x_0, x_1, ..."""
    attack = APGD(steps=steps, rho=rho)
    sizes = [float(state.step[0]) for state in states(attack, some_rows(), losses)]
    assert all(after in (before, before / 2) for before, after in itertools.pairwise(sizes))
    return [i for i in range(steps) if sizes[i + 1] < sizes[i]]


@pytest.mark.parametrize(
    ("steps", "table"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),
        (50, [11, 21, 30, 38, 45]),
        (20, [4, 7, *range(9, 20)]),
        (4, [1, 2, 3]),
    ],
)
def test_checkpoints(steps: int, table: list[int]) -> None:
    """A loss that never rises halves the step at every checkpoint."""
    assert halvings(steps, [1.0] * steps) == table


def test_a_rising_loss_halves_nothing() -> None:
    assert halvings(100, [float(i) for i in range(100)]) == []


@pytest.mark.parametrize(("rises", "halved"), [(11, True), (12, False)])
def test_first_rule_holds_at_equality(rises: int, halved: bool) -> None:
    up = [float(i) for i in range(rises + 1)]
    down = [up[-1] - 0.1 * i for i in range(1, 23 - rises)]
    later = [100.0 + i for i in range(77)]
    assert (22 in halvings(100, [*up, *down, *later], rho=0.5)) == halved


def test_second_rule() -> None:
    """Rises enough but no new best: halved, though not at two checkpoints in a row."""
    rising = [float(i) for i in range(23)]  # up to the checkpoint at 22: not halved
    below = [0.1 * i for i in range(19)]  # falls once, rises 18 times, stays under the best
    losses = [*rising, *below, *below[:16], *[0.0] * 42]
    found = halvings(100, losses)
    assert found[0] == 41
    assert 57 not in found


@pytest.mark.parametrize(("first", "expected"), [((5.0, 4.0), [22]), ((-5.0, -4.0), [])])
def test_first_checkpoint_compares_with_the_start(
    first: tuple[float, float], expected: list[int]
) -> None:
    """17 rises of 22 are enough, 16 are not; whether the first step rises decides here."""
    up = [first[1] + 0.01 * i for i in range(1, 17)]  # 16 rises
    down = [up[-1] - 0.001 * i for i in range(1, 6)]  # 5 falls
    losses = [*first, *up, *down]
    assert len(losses) == 23
    assert [i for i in halvings(100, [*losses, *[100.0 + i for i in range(77)]]) if i <= 22] == (
        expected
    )


def test_halved_rows_go_on_from_the_best_point() -> None:
    """From x_best with its stored gradient; the point before stays the last iterate."""
    attack, rows = APGD(steps=100), some_rows()
    losses = [9.0 if i == 7 else 1.0 for i in range(23)]
    trail = states(attack, rows, losses)
    best, gradient = trail[7].points, answers(rows, losses)[7].gradient
    assert gradient is not None
    memory = trail[-1].memory
    assert isinstance(memory, Momentum)
    assert torch.equal(trail[-1].best, best)
    assert torch.equal(memory.past, best)
    z = project(best + 0.1 * gradient.sign(), rows.images, rows.eps, "linf")  # 2 eps, halved
    expected = best + 0.75 * (z - best) + 0.25 * (best - trail[21].points)
    expected = project(expected, rows.images, rows.eps, "linf")
    torch.testing.assert_close(trail[-1].points, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_are_those_of_the_paper(norm: str) -> None:
    """Algorithm 1, literally, for the first three steps."""
    attack, rows = APGD(norm=norm), some_rows()  # type: ignore[arg-type]
    losses = [1.0, 2.0, 3.0]
    trail = states(attack, rows, losses)
    start = distance(trail[0].points, rows.images, norm)
    torch.testing.assert_close(start, rows.eps, rtol=1e-9, atol=0)
    previous = trail[0].points
    for i, answer in enumerate(answers(rows, losses)):
        x, g = trail[i].points, answer.gradient
        assert g is not None
        g = g.sign() if norm == "linf" else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        a = 0.75 if i else 1.0
        z = project(x + 2 * 0.1 * g, rows.images, rows.eps, norm)
        moved = project(x + a * (z - x) + (1 - a) * (x - previous), rows.images, rows.eps, norm)
        torch.testing.assert_close(trail[i + 1].points, moved, rtol=0, atol=1e-12)
        previous = x


def test_sparse_direction_keeps_the_largest_entries() -> None:
    gradient = torch.tensor([[5.0, -4.0, 3.0, 2.0, 1.0]]).double().repeat(4, 1)
    share = torch.tensor([0.2, 0.6, 0.0, 1.0], dtype=torch.float64)
    direction = _sparse_direction(gradient, share)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]).double()
    for row, kept in enumerate([1, 3, 1, 5]):
        expected = torch.where(torch.arange(5) < kept, signs / kept, 0.0)
        torch.testing.assert_close(direction[row], expected)
    assert (_sparse_direction(torch.zeros(1, 5), torch.tensor([0.4])) == 0).all()


def test_l1_step_size_and_sparsity() -> None:
    """Nothing sparser: eta falls by 1.5 every 4 steps, down to eps / 10; q follows the support."""
    attack, rows = APGD(norm="l1"), some_rows(eps=1.0)
    trail = states(attack, rows, [10.0 - i for i in range(60)])  # the start stays the best point
    support = (trail[0].points != rows.images).flatten(1).sum(1)
    # At the first count the start is sparser than "all entries", so eta stays at eps.
    falls = [1.0, 1 / 1.5, 1 / 1.5**2]
    sizes = [float(trail[i].step[0]) for i in (5, 9, 13)]
    assert sizes == pytest.approx(
        falls if int(support[0]) < 0.95 * 16 else [f / 1.5 for f in falls]
    )
    assert float(trail[-1].step[0]) == pytest.approx(0.1)
    share = trail[5].memory.share  # type: ignore[union-attr]
    torch.testing.assert_close(share, support.double() / (1.5 * 16))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 100])
def test_large_radius_shrinks_in_three_phases(steps: int) -> None:
    attack, rows = APGD(norm="l1", steps=steps, large_radius=True), some_rows(eps=0.5)
    losses = [float(i % 5) for i in range(steps)]
    trail = states(attack, rows, losses)
    part = -(-3 * steps // 10)
    for i, state in enumerate(trail):
        factor = 1 if i == steps else 3 if i < part else 2 if i < 2 * part else 1
        length = distance(state.points, rows.images, "l1")
        assert (length <= largest_allowed(factor * rows.eps)).all()
        assert (attack.inside(state, rows) == (factor == 1)).all()
        if i:
            assert float(state.step[0]) <= factor * 0.5 + 1e-12
    if steps == 100:
        # The ball of 2 eps begins at the best point of the larger one: the first with loss 4.
        leap = project(trail[4].points, rows.images, 2 * rows.eps, "l1")
        torch.testing.assert_close(trail[30].points, leap, rtol=0, atol=1e-9)


def test_large_radius_is_of_l1_alone() -> None:
    with pytest.raises(UserError, match="large_radius"):
        APGD(norm="linf", large_radius=True)


def test_points_outside_the_budget_are_no_claims() -> None:
    """Every image breaks at once in the ball of 3 eps; none may count, and none is invalid."""
    model = oracles.Linear(SHAPE, 3)
    images = oracles.middle_images(12, SHAPE)
    labels = oracles.predicted(model, images)
    eps = 0.7 * model.distances(images, labels, "l1")
    attack = APGD(norm="l1", steps=20, large_radius=True)
    for i in range(12):
        one = slice(i, i + 1)
        outcome = oracles.run(attack, model, images[one], labels[one], (float(eps[i]),))
        assert outcome.invalid_claims == 0
        assert torch.isinf(outcome.distance).all()
    image = craft(model, attack, images, labels, eps, keep="best_loss")
    assert (distance(image, images, "l1") <= largest_allowed(eps)).all()


def test_targets_by_rank() -> None:
    attack = APGD(loss="dlr", targets=9, restarts=2)
    assert [attack.runs(classes) for classes in (2, 3, 10, 100)] == [2, 4, 18, 18]
    assert APGD(restarts=3).runs(10) == 3
    rows = some_rows()
    rows = replace(
        rows,
        run=torch.tensor([0, 1, 2]),
        rivals=torch.tensor([[2, 1, 3], [2, 1, 3], [1, 2, 3]]),
    )
    state = attack.start(rows)
    aim = attack.ask(state, rows).aim
    assert aim is not None
    assert aim.tolist() == [2, 1, 3]
    later = attack.ask(state, replace(rows, run=rows.run + 3)).aim
    assert later is not None
    assert later.tolist() == [2, 1, 3]  # three rivals: the fourth run tries the first one again
    aim = attack.ask(state, replace(rows, target=torch.tensor([-1, 2, -1]))).aim
    assert aim is not None
    assert aim.tolist() == [2, 2, 3]
    assert APGD().ask(state, rows).aim is None


def test_of_three_classes_dlr_runs_are_untargeted() -> None:
    rows = replace(some_rows(), rivals=torch.tensor([[2, 1], [2, 1], [1, 2]]))
    attack = APGD(loss="dlr", targets=9)
    assert attack.ask(attack.start(rows), rows).aim is None
    margin = APGD(loss="margin", targets=9)
    assert margin.ask(margin.start(rows), rows).aim is not None


class _Digits(nn.Module):
    """A small smooth network: rounding does not send two runs different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.GELU(), nn.Conv2d(12, 16, 3, stride=2), nn.GELU(),
            nn.Flatten(), nn.Linear(144, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images)
        return result


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained for a second or two, and 100 images that it has not seen."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _Digits()
        optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
        for _ in range(240):
            index = torch.randperm(1500)[:200]
            noisy = images[index] + 0.15 * torch.randn(200, 1, 8, 8)
            loss = nn.functional.cross_entropy(model(noisy), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval().requires_grad_(False)
    images, labels = images[1500:], labels[1500:]
    correct = model(images).argmax(1) == labels
    return model, images[correct][:100], labels[correct][:100]


def reference(model: nn.Module, norm: str, steps: int, **options: Any) -> Any:
    from pyautoattack import autopgd_base

    targets = options.pop("targets", 0)
    form = autopgd_base.APGDAttack_targeted if targets else autopgd_base.APGDAttack
    if targets:
        options["n_target_classes"] = targets
    return form(model, n_iter=steps, norm=NAMES[norm], eps=EPS[norm], device="cpu", **options)


@pytest.mark.parametrize("norm", list(NAMES))
def test_same_run_as_the_reference(
    digits: tuple[nn.Module, Tensor, Tensor], norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same start, the best loss after 100 steps is the reference's."""
    model, images, labels = digits
    attack = APGD(norm=norm)  # type: ignore[arg-type]
    rows = builders.rows(images, labels, EPS[norm])
    state = attack.start(rows)
    theirs = reference(model, norm, attack.steps)
    theirs.init_hyperparam(images)
    options = {} if norm == "l1" else {"x_init": state.points.clone()}
    if norm == "l1":  # a given start would set another sparsity: give it our noise instead
        noise = rng.normal(rows.key, tuple(images.shape[1:]))
        monkeypatch.setattr(torch, "randn", lambda *shape, **_: noise)
    expected = theirs.attack_single_run(images, labels, **options)[2]
    monkeypatch.undo()
    found = torch.full_like(expected, -torch.inf)
    for _ in range(attack.steps + 1):
        points = state.points.detach().requires_grad_()
        logits = model(points)
        loss = nn.functional.cross_entropy(logits, labels, reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        found = torch.maximum(found, loss.detach())
        if not bool(attack.finished(state, rows).all()):
            state = attack.tell(state, rows, Answer(logits.detach(), loss.detach(), gradient))
    assert attack.finished(state, rows).all()
    close = (found - expected).abs() <= 1e-3 * expected.abs() + 1e-5
    assert close.float().mean() >= 0.9
    torch.testing.assert_close(found.mean(), expected.mean(), rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("norm", "form"), [*itertools.product(NAMES, ["ce", "dlr", "t"]), ("l1", "large")]
)
def test_strength(digits: tuple[nn.Module, Tensor, Tensor], norm: str, form: str) -> None:
    """Within two of 100 images of the reference at equal budgets, with own random starts."""
    model, images, labels = digits
    steps, targets = 30, 3 if form == "t" else 0
    options: dict[str, Any] = {"use_largereps": form == "large"}
    if targets:
        options["targets"] = targets
    else:
        options["loss"] = "dlr" if form == "dlr" else "ce"
    adversarial = reference(model, norm, steps, seed=0, **options).perturb(images, labels)
    theirs = int((model(adversarial).argmax(1) != labels).sum())
    attack = APGD(
        norm=norm,  # type: ignore[arg-type]
        steps=steps,
        loss="dlr" if form in ("dlr", "t") else "ce",
        targets=targets,
        large_radius=form == "large",
    )
    outcome = oracles.run(attack, model, images, labels, (EPS[norm],))
    ours = int(torch.isfinite(outcome.distance).sum())
    assert 10 <= theirs <= 90
    assert ours >= theirs - 2
    assert outcome.invalid_claims == 0
    assert outcome.cost.backward <= steps * max(targets, 1) * len(labels)
