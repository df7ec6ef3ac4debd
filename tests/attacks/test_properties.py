"""What every registered attack must hold; a new attack gets these tests for free."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core import rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.search import runs_of
from tests.engine import oracles

EVERY = oracles.attacks()
ENSEMBLES = [name for name in EVERY if hasattr(oracles.build(name), "members")]
ATTACKS = [name for name in EVERY if name not in ENSEMBLES]
FIXED = [name for name in ATTACKS if not getattr(oracles.build(name), "minimum", False)]
NEAREST = [name for name in ATTACKS if name not in FIXED]
EPS = {"linf": 0.06, "l2": 0.4, "l1": 2.5}
FEW = {"steps": 8, "n_queries": 30, "init_draws": 40}


@pytest.fixture(params=ATTACKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=FIXED)
def fixed(request: pytest.FixtureRequest) -> str:
    """Attacks that are given a budget."""
    return str(request.param)


def setting(name: str, count: int = 24, classes: int = 10) -> tuple[nn.Module, Tensor, Tensor]:
    model = oracles.convolution(2, classes)
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(count, 2, 6, 5, generator=generator).double()
    images[::3] = images[::3].round()  # pixels at exactly 0 and 1
    return model, images, oracles.predicted(model, images)


def budgets(attack: object) -> tuple[float, ...]:
    eps = EPS[attack.norm]  # type: ignore[attr-defined]
    return (0.25 * eps, 0.5 * eps, eps, 2 * eps)


def test_linear_oracle(fixed: str) -> None:
    """Breaks just above the closed-form distance, never below it."""
    # From a ball of three times the radius APGD may commit itself to a class out of reach.
    attack = oracles.build(fixed, n_queries=80, large_radius=False)
    model = oracles.Linear((1, 4, 4), 3)
    images = oracles.middle_images(16, (1, 4, 4))
    labels = oracles.predicted(model, images)
    exact = model.distances(images, labels, attack.norm)
    exact = exact.clamp_max(0.4 if attack.norm == "linf" else exact.max())
    one_step = attack.passes(3)[0] == 1
    # Random search aims at corners of the Linf ball; for L2 and L1 it need not come near the best.
    blind = attack.passes(3)[1] == 0 and attack.norm != "linf"
    for i in range(len(images)):
        image, label = images[i : i + 1], labels[i : i + 1]
        below = oracles.run(attack, model, image, label, (0.99 * float(exact[i]),))
        assert torch.isinf(below.distance).all()
        if exact[i] < (0.4 if attack.norm == "linf" else 0.3 if attack.norm == "l1" else 1.0):
            above = oracles.run(attack, model, image, label, (1.3 * float(exact[i]),))
            if not one_step and not blind:
                assert above.distance[0] <= 1.3 * exact[i] * (1 + 1e-6)


def test_broken_images_are_valid_and_wrong(name: str) -> None:
    """What the verdict accepts lies in ball and box and is misclassified afresh."""
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    eps = EPS[attack.norm]
    crafted = craft(model, attack, images, labels, eps)
    assert crafted.min() >= 0
    assert crafted.max() <= 1
    if name in FIXED:
        limit = largest_allowed(torch.tensor(eps, dtype=torch.float64))
        assert (distance(crafted, images, attack.norm) <= limit).all()
    outcome = oracles.run(attack, model, images, labels, (eps,))
    assert outcome.invalid_claims == 0
    wrong = oracles.predicted(model, crafted) != labels
    # The last iterate is one of the points a verdict run looks at (same randomness, one run).
    again = oracles.run(attack, model, images, labels, (eps,), name="craft")
    assert (torch.isfinite(again.distance) | ~wrong).all()


@pytest.mark.parametrize("nearest", NEAREST)
@pytest.mark.parametrize("classes", [2, 3])
def test_minimum_norm_on_the_linear_oracle(nearest: str, classes: int) -> None:
    """Never nearer than the closed form, and near it."""
    attack = oracles.build(nearest, **oracles.quick_steps(nearest))
    model = oracles.Linear((1, 4, 4), classes)
    images = oracles.middle_images(16, (1, 4, 4))
    labels = oracles.predicted(model, images)
    with torch.no_grad():  # nearer boundaries, so that one pixel of the box is room enough for L1
        ahead = model(images).topk(2, dim=1).values
        model.bias[labels.mode().values] -= 0.6 * (ahead[:, 0] - ahead[:, 1]).amin()
    assert torch.equal(labels, oracles.predicted(model, images))
    exact = model.distances(images, labels, attack.norm)
    inside = exact < {"linf": 0.3, "l2": 0.9, "l1": 0.3}[attack.norm]
    found = oracles.run(attack, model, images, labels, ()).distance
    assert (found >= exact * (1 - 1e-9)).all()
    assert inside.sum() >= 4
    decision_based = attack.passes(classes)[1] == 0
    assert (found / exact)[inside].median() <= (1.5 if decision_based else 1.06)


@pytest.mark.parametrize("nearest", NEAREST)
def test_nearest_image_is_the_one_reported(nearest: str) -> None:
    """In float64 without repairs, the image run returns a point at the verdict run's distance."""
    attack = oracles.build(nearest, **FEW)
    model, images, labels = setting(nearest)
    crafted = craft(model, attack, images, labels, float("inf"))
    outcome = oracles.run(attack, model, images, labels, (), name="craft")
    found = torch.isfinite(outcome.distance)
    length = distance(crafted, images, attack.norm)
    torch.testing.assert_close(length[found], outcome.distance[found], rtol=1e-6, atol=1e-9)


class Viewing(nn.Module):
    """`oracles.convolution`, flattened by `view`: the default layout only, as in much code."""

    def __init__(self) -> None:
        super().__init__()
        parts = list(oracles.convolution(2, 10).float().children())
        self.features, self.last = nn.Sequential(*parts[:4]), parts[5]

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images).view(len(images), -1))


def test_networks_that_view_their_features(name: str) -> None:
    """They are asked in a layout that they take, in verdict runs and in image runs."""
    attack = oracles.build(name, **FEW)
    model = Viewing().eval()
    images = setting(name)[1][:6].float()
    labels = oracles.predicted(model, images)
    eps = EPS[attack.norm]
    outcome = oracles.run(attack, model, images, labels, (eps,), name=name)
    assert (outcome.queries > 0).all()
    crafted = craft(model, attack, images, labels, eps)
    assert crafted.shape == images.shape


def test_sweep_is_monotone_and_eps_zero_is_clean(name: str) -> None:
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    labels = labels.clone()
    labels[:4] = (labels[:4] + 1) % 10  # four clean-wrong examples
    outcome = oracles.run(attack, model, images, labels, budgets(attack))
    assert (outcome.distance[:4] == 0).all()
    accuracy = [float((outcome.distance > eps).double().mean()) for eps in (0.0, *budgets(attack))]
    assert accuracy[0] == pytest.approx(20 / 24)
    assert all(a >= b for a, b in itertools.pairwise(accuracy))


def test_clean_wrong_examples_cost_one_pass(name: str) -> None:
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    labels = (labels + 1) % 10
    outcome = oracles.run(attack, model, images, labels, budgets(attack))
    assert (outcome.queries == 1).all()
    assert outcome.cost.backward == 0


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_results_do_not_depend_on_the_batch(name: str, batch_size: int) -> None:
    """Exactly, in float64: other batch sizes, other order, other batch mates."""
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    grid = budgets(attack)
    whole = oracles.run(attack, model, images, labels, grid)
    parts = oracles.run(attack, model, images, labels, grid, batch_size=batch_size)
    torch.testing.assert_close(whole.distance, parts.distance, rtol=1e-9, atol=0)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    shuffled = oracles.run(
        attack, model, images[order], labels[order], grid, numbers=order, batch_size=batch_size
    )
    torch.testing.assert_close(whole.distance[order], shuffled.distance, rtol=1e-9, atol=0)
    subset = oracles.run(attack, model, images[5:9], labels[5:9], grid, numbers=torch.arange(5, 9))
    torch.testing.assert_close(whole.distance[5:9], subset.distance, rtol=1e-9, atol=0)


def test_sweep_equals_separate_runs(fixed: str) -> None:
    """At each budget, what a sweep breaks first is what a run at that budget alone breaks."""
    attack = oracles.build(fixed, **FEW)
    model, images, labels = setting(fixed)
    grid = budgets(attack)
    sweep = oracles.run(attack, model, images, labels, grid)
    table = oracles.run(attack, model, images, labels, grid, sweep="independent")
    for position, eps in enumerate(grid):
        alone = oracles.run(attack, model, images, labels, (eps,))
        assert torch.equal(table.broken[position], torch.isfinite(alone.distance))
        earlier = sweep.budget < eps * (1 - 1e-9)
        assert torch.equal(
            (sweep.budget <= eps) | earlier, torch.isfinite(alone.distance) | earlier
        )


def test_restarts_never_hurt(name: str) -> None:
    model, images, labels = setting(name)
    one = oracles.build(name, steps=4, n_queries=20, restarts=1)
    many = oracles.build(name, steps=4, n_queries=20, restarts=4)
    eps = (EPS[one.norm],)
    first = oracles.run(one, model, images, labels, eps)
    more = oracles.run(many, model, images, labels, eps)
    assert (torch.isfinite(more.distance) | torch.isinf(first.distance)).all()


def test_targeted_ends_in_the_target(name: str) -> None:
    attack = oracles.build(name, **{**FEW, "steps": 20})  # fewer do not settle a minimum norm
    model, images, labels = setting(name)
    target = (labels + 3) % 10
    eps = 4 * EPS[attack.norm]
    crafted = craft(model, attack, images, labels, eps, target=target)
    assert (oracles.predicted(model, crafted) == target).sum() > 0 or attack.passes(10)[0] == 1
    outcome = oracles.run(attack, model, images, labels, (eps,), target=target, name="craft")
    reached = oracles.predicted(model, crafted) == target
    assert (torch.isfinite(outcome.distance) | ~reached).all()
    untargeted = oracles.run(attack, model, images, labels, (eps,))
    assert torch.isfinite(outcome.distance).sum() <= torch.isfinite(untargeted.distance).sum()


def test_budget_is_kept(name: str) -> None:
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    tiny = (1e-9,)
    outcome = oracles.run(attack, model, images, labels, tiny)
    forward, backward = attack.passes(10)
    runs = runs_of(attack, 10)
    assert outcome.cost.backward <= backward * runs * len(labels)
    assert int(outcome.queries.max()) <= forward * runs + 1
    assert outcome.cost.backward > 0 or backward == 0


def test_subject_is_left_as_it_was(name: str) -> None:
    """Gradients, flags, buffers, mode of each part and the global random state."""
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    model[2].train()
    model[0].weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    flags = [weight.requires_grad for weight in model.parameters()]
    state = torch.random.get_rng_state()
    oracles.run(attack, model, images, labels, budgets(attack))
    craft(model, attack, images, labels, EPS[attack.norm])
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert modes == [part.training for part in model.modules()]
    assert flags == [weight.requires_grad for weight in model.parameters()]
    assert all(weight.grad is None for weight in model.parameters())


def test_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)
    grid = budgets(attack)
    plain = oracles.run(attack, model, images, labels, grid)
    moved = oracles.run(attack, lambda x: model(x) - 50.0, images, labels, grid)
    torch.testing.assert_close(plain.distance, moved.distance, rtol=1e-6, atol=0)


def test_zero_gradient_gives_no_result(name: str) -> None:
    """No result, never an image: and the trace says why."""
    attack = oracles.build(name, **FEW)
    images = oracles.middle_images(6, (1, 3, 3))
    labels = torch.zeros(6, dtype=torch.int64)
    outcome = oracles.run(attack, oracles.Constant(), images, labels, budgets(attack))
    assert torch.isinf(outcome.distance).all()
    assert outcome.trace.zero_start.all() or attack.passes(10)[1] == 0


def test_nan_logits_name_the_example(name: str) -> None:
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name)

    def broken(points: Tensor) -> Tensor:
        logits = model(points)
        return torch.where(points[:, :1, 0, 0] == images[11, 0, 0, 0], torch.nan, logits)

    with pytest.raises(UserError, match="NaN for test image 111"):
        oracles.run(attack, broken, images, labels, budgets(attack), numbers=torch.arange(100, 124))


@pytest.mark.parametrize("classes", [2, 3, 4, 100])
def test_any_number_of_classes(name: str, classes: int) -> None:
    attack = oracles.build(name, **FEW)
    model, images, labels = setting(name, classes=classes)
    outcome = oracles.run(attack, model, images, labels, (4 * EPS[attack.norm],))
    assert torch.isfinite(outcome.distance).any()


def test_per_example_budgets_equal_separate_runs(fixed: str) -> None:
    attack = oracles.build(fixed, **FEW)
    model, images, labels = setting(fixed)
    eps = torch.linspace(0.5, 2, len(labels)).double() * EPS[attack.norm]
    together = craft(model, attack, images, labels, eps)
    keys = rng.run_keys(0, "craft", torch.arange(len(labels)))
    for i in (0, 7, 23):
        alone = craft(
            model, attack, images[i : i + 1], labels[i : i + 1], float(eps[i]), key=keys[i : i + 1]
        )
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_ensemble_is_the_worst_case_over_its_members(ensemble: str) -> None:
    """What any member breaks alone (with the ensemble's randomness) is broken, and costs less."""
    attack = oracles.build(ensemble, steps=8, n_queries=40)
    model, images, labels = setting(ensemble, count=16)
    labels = labels.clone()
    labels[:2] = (labels[:2] + 1) % 10
    grid = budgets(attack)[1:3]
    outcome = oracles.run(attack, model, images, labels, grid, name="aa")
    assert (outcome.distance[:2] == 0).all()
    for position, eps in enumerate(grid):
        limit = largest_allowed(torch.tensor(eps).double())
        alone = outcome.distance == 0
        for name, member in attack.members(10):
            found = oracles.run(
                member, model, images, labels, (eps,), name=f"aa.{name}", enough=eps
            ).distance
            alone |= found <= limit
        assert torch.equal(outcome.broken[position], outcome.distance <= limit)
        assert (outcome.broken[position] | ~alone).all()
    assert outcome.cost.backward <= attack.passes(10)[1] * len(grid) * 14


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_ensembles_work_with_few_classes(ensemble: str, classes: int) -> None:
    attack = oracles.build(ensemble, steps=4, n_queries=10)
    model, images, labels = setting(ensemble, count=8, classes=classes)
    outcome = oracles.run(attack, model, images, labels, budgets(attack)[:1])
    assert not outcome.broken.all(), "survivors are needed to reach the last member"


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_ensembles_do_not_depend_on_the_batch(ensemble: str) -> None:
    attack = oracles.build(ensemble, steps=6, n_queries=20)
    model, images, labels = setting(ensemble, count=12)
    grid = budgets(attack)[:2]
    whole = oracles.run(attack, model, images, labels, grid)
    parts = oracles.run(attack, model, images, labels, grid, batch_size=5)
    torch.testing.assert_close(whole.distance, parts.distance, rtol=1e-9, atol=0)
