"""Verdict runs: which point counts, who runs when, and what a lying twin can do (nothing)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine import search as engine
from robustbench_defenses.engine.search import Outcome
from robustbench_defenses.engine.twin import Twin
from tests.engine import builders, oracles
from tests.engine.builders import Bands, Recorder, Walk, grey

INF = float("inf")
DARK = torch.zeros(1, dtype=torch.int64)  # class 0: below the edge
BELOW = Bands(0.18, 0.6)  # class 1 above a mean of 0.39


def always(right: bool) -> Logits:
    """Class 0 (right) or class 1 for every image, with a gradient."""
    ahead = torch.tensor([1.0, 0.0] if right else [0.0, 1.0], dtype=torch.float64)
    return lambda images: ahead + 0 * images.flatten(1).double().sum(1)[:, None]


def same(a: Outcome, b: Outcome) -> None:
    """Equal outcomes, whatever was spent on them."""
    torch.testing.assert_close(a.distance, b.distance, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.budget, b.budget, rtol=0, atol=0)
    assert torch.equal(a.clean_prediction, b.clean_prediction)


# Which point counts.


def test_k_steps_score_k_plus_one_points() -> None:
    judge = Recorder(always(right=True))
    out = builders.search(
        Walk(steps=4), always(right=False), grey(0.2), DARK, (0.4,), deployed=judge
    )
    means = torch.cat(judge.asked).flatten(1).mean(1).tolist()
    assert means == pytest.approx([0.2, 0.2, 0.3, 0.4, 0.5, 0.6])  # first: the clean prediction
    assert out.distance.tolist() == [INF]


@pytest.mark.parametrize(
    ("eps", "steps", "distance"),
    [(0.4, 4, 0.2), (0.4, 1, 0.4), (0.25, 5, 0.2), (0.18, 5, INF), (0.8, 8, 0.2)],
)
def test_the_first_broken_iterate_counts(eps: float, steps: int, distance: float) -> None:
    """From 0.2, class 1 begins above 0.39; step k stands at eps k / steps."""
    out = builders.search(Walk(steps=steps), BELOW, grey(0.2), DARK, (eps,))
    assert out.distance.tolist() == pytest.approx([distance])
    assert out.budget.tolist() == ([eps] if distance < INF else [INF])
    assert out.broken.tolist() == [[distance < INF]]


def band(low: float, high: float) -> Logits:
    """Class 1 for means between `low` and `high`, else class 0."""

    def call(images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(1)
        return torch.stack([0 * mean, (high - low) / 2 - (mean - (low + high) / 2).abs()], 1)

    return call


def test_an_iterate_that_crosses_back_counts() -> None:
    """Class 1 only between 0.35 and 0.45: the last iterate, at 0.6, is right again."""
    out = builders.search(Walk(steps=4), band(0.35, 0.45), grey(0.2), DARK, (0.4,))
    assert out.distance.tolist() == pytest.approx([0.2])
    last = builders.search(Walk(steps=1), band(0.35, 0.45), grey(0.2), DARK, (0.4,))
    assert last.distance.tolist() == [INF]


def test_broken_rows_cost_nothing_more() -> None:
    out = builders.search(Walk(steps=8), BELOW, grey(0.35, 0.2, 0.0), DARK.repeat(3), (0.4,))
    # The clean image, then steps of 0.05 up to 0.4; the last point is not asked about, only judged.
    assert out.distance.tolist() == pytest.approx([0.05, 0.2, 0.4])
    assert out.queries.tolist() == [1 + 2, 1 + 5, 1 + 8]
    assert out.cost.backward == 2 + 5 + 8


# The verdict is the deployed subject's.


def test_a_twin_that_claims_everything_breaks_nothing() -> None:
    out = builders.search(
        Walk(steps=5, directions=(1, -1)), always(right=False), grey(0.2, 0.3), DARK.repeat(2),
        (0.1, 0.2), deployed=always(right=True),
    )  # fmt: skip
    assert torch.isinf(out.distance).all()
    assert not out.broken.any()
    assert out.queries.tolist() == [1 + 2 * 2 * 5] * 2  # and nobody leaves on a claim


def test_a_twin_that_claims_nothing_still_gets_its_last_point_judged() -> None:
    out = builders.search(
        Walk(steps=4), always(right=True), grey(0.2, 0.2), DARK.repeat(2), (0.1, 0.4),
        deployed=BELOW,
    )  # fmt: skip
    assert out.distance.tolist() == pytest.approx([0.4, 0.4])
    assert out.budget.tolist() == [0.4, 0.4]


def test_a_claim_refused_does_not_end_the_run() -> None:
    """The twin's edge lies at 0.3, the true one at 0.39."""
    out = builders.search(
        Walk(steps=8), Bands(0.2, 0.4), grey(0.2), DARK, (0.4,), deployed=BELOW
    )  # fmt: skip
    assert out.distance.tolist() == pytest.approx([0.2])


def test_claims_outside_ball_or_box_are_counted_but_never_count() -> None:
    class TooFar(Walk):
        def tell(self, state, rows, answer):  # type: ignore[no-untyped-def]
            state = super().tell(state, rows, answer)
            state.points = rows.images + 2 * (state.points - rows.images)
            return state

    out = builders.search(TooFar(steps=1), BELOW, grey(0.2), DARK, (0.3,))
    assert out.distance.tolist() == [INF]
    assert out.invalid_claims == 1


# Sweeps, restarts, targets.


def test_envelope_and_independent_differ_where_success_ends() -> None:
    """One step; class 1 between 0.3 and 0.45 only, so a large budget jumps over it."""
    model = band(0.3, 0.45)
    grid = (0.05, 0.15, 0.3)
    attack = Walk(steps=1)
    table = builders.search(attack, model, grey(0.2), DARK, grid, sweep="independent")
    assert table.broken.tolist() == [[False], [True], [False]]
    sweep = builders.search(attack, model, grey(0.2), DARK, grid)
    assert sweep.distance.tolist() == pytest.approx([0.15])
    assert sweep.budget.tolist() == [0.15]
    assert sweep.queries.tolist() == [1 + 2]
    assert table.queries.tolist() == [1 + 3]


@pytest.mark.parametrize("sweep", ["envelope", "independent"])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_outcomes_do_not_depend_on_the_batch(sweep: str, batch_size: int) -> None:
    images = grey(*(0.05 * i for i in range(12)))
    labels = DARK.repeat(12)
    attack = Walk(steps=3, directions=(-1, 1, 1))
    whole = builders.search(attack, BELOW, images, labels, (0.05, 0.1, 0.2, 0.3), sweep=sweep)
    parts = builders.search(
        attack, BELOW, images, labels, (0.05, 0.1, 0.2, 0.3), sweep=sweep, batch_size=batch_size
    )
    same(whole, parts)
    assert torch.equal(whole.broken, parts.broken)
    assert (whole.distance[:8] > 0).all()
    assert 0 < torch.isfinite(whole.distance[:8]).sum() < 8  # neither everyone nor nobody


def test_restarts_are_spent_on_the_unbroken() -> None:
    """The first run darkens and fails, the second one brightens and breaks, the third is idle."""
    images, labels = grey(0.3, 0.0), DARK.repeat(2)
    out = builders.search(
        Walk(steps=2, directions=(-1, 1, 1)), BELOW, images, labels, (0.3,), batch_size=1
    )
    assert out.distance.tolist() == pytest.approx([0.15, INF])
    assert out.queries.tolist() == [1 + 2 + 2, 1 + 3 * 2]


def test_what_a_success_makes_worthless_is_dropped_at_once() -> None:
    """Two runs at once: the first breaks at its second question, so the other asks no third."""
    attack = Walk(steps=8, directions=(1, -1))
    out = builders.search(attack, BELOW, grey(0.38), DARK, (0.4,))
    assert out.distance.tolist() == pytest.approx([0.05])
    assert out.queries.tolist() == [1 + 2 * 2]


def test_an_earlier_restart_wins_though_it_takes_longer() -> None:
    """Two runs at once: the second breaks at its first step, the first one later and counts."""

    class Uneven(Walk):
        def tell(self, state, rows, answer):  # type: ignore[no-untyped-def]
            state = super().tell(state, rows, answer)
            far = torch.where(rows.run == 1, 0.35, 0.1 * state.done.double())
            state.points = rows.images + far.view(-1, 1, 1, 1)
            return state

    attack = Uneven(steps=4, directions=(1, 1))
    together = builders.search(attack, BELOW, grey(0.15), DARK, (0.4,))
    assert together.distance.tolist() == pytest.approx([0.3])
    same(together, builders.search(attack, BELOW, grey(0.15), DARK, (0.4,), batch_size=1))


def test_a_success_at_a_smaller_budget_replaces_one_at_a_larger() -> None:
    """Almost empty batches start later budgets early; the smaller budget decides all the same."""
    out = builders.search(Walk(steps=5), BELOW, grey(0.2, 0.1), DARK.repeat(2), (0.25, 0.5, 0.75))
    assert out.budget.tolist() == [0.25, 0.5]
    assert out.distance.tolist() == pytest.approx([0.2, 0.3])


def test_targeted_runs_want_the_target() -> None:
    model = Bands(0.08, 0.28, 0.5)  # edges at 0.18 and 0.39
    target = torch.tensor([2, 1, 2])
    out = builders.search(
        Walk(steps=5), model, grey(0.1, 0.1, 0.1), DARK.repeat(3), (0.25, 0.5), target=target
    )
    assert out.distance.tolist() == pytest.approx([0.3, 0.1, 0.3])
    assert out.budget.tolist() == [0.5, 0.25, 0.5]


# Bookkeeping.


def test_clean_wrong_examples_are_broken_at_zero_and_not_attacked() -> None:
    out = builders.search(Walk(), BELOW, grey(0.5, 0.2), DARK.repeat(2), (0.05, 0.1))
    assert out.clean_prediction.tolist() == [1, 0]
    assert out.distance.tolist() == [0, INF]
    assert out.budget.tolist() == [0, INF]
    assert out.broken.tolist() == [[True, False], [True, False]]
    assert out.trace.tried.tolist() == [False, True]
    assert out.queries[0] == 1


@pytest.mark.parametrize("sweep", ["envelope", "independent"])
def test_no_budget_and_no_right_example(sweep: str) -> None:
    none = builders.search(Walk(), BELOW, grey(0.5, 0.2), DARK.repeat(2), (), sweep=sweep)
    assert none.distance.tolist() == [0, INF]
    assert none.broken.shape == (0, 2)
    wrong = builders.search(Walk(), BELOW, grey(0.5, 0.6), DARK.repeat(2), (0.1,), sweep=sweep)
    assert wrong.distance.tolist() == [0, 0]
    assert wrong.cost.forward == 2


@pytest.mark.parametrize("sweep", ["envelope", "independent"])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_progress_rises_to_one(sweep: str, batch_size: int) -> None:
    seen: list[tuple[int, float]] = []
    images = grey(*(0.04 * i for i in range(20)))
    out = builders.search(
        Walk(steps=3, directions=(1, -1)), BELOW, images, DARK.repeat(20), (0.1, 0.2), sweep=sweep,
        batch_size=batch_size, report=lambda broken, share: seen.append((broken, share)),
    )  # fmt: skip
    broken, shares = zip(*seen)
    assert list(broken) == sorted(broken)
    assert list(shares) == sorted(shares)
    assert shares[-1] == 1
    assert broken[-1] == int(torch.isfinite(out.distance).sum())


def test_the_trace_keeps_the_farthest_of_several_runs_that_end_together() -> None:
    class Spread(Walk):
        def tell(self, state, rows, answer):  # type: ignore[no-untyped-def]
            state = super().tell(state, rows, answer)
            share = torch.tensor([0.9, 0.4, 0.6, 0.2]).double()[rows.run]
            state.points = rows.images + (share * rows.eps).view(-1, 1, 1, 1)
            return state

    attack = Spread(steps=1, directions=(1, 1, 1, 1))
    out = builders.search(attack, BELOW, grey(0.1, 0.2), DARK.repeat(2), (0.1,))
    assert out.trace.reach.tolist() == pytest.approx([0.9, 0.9])


def test_the_trace_of_broken_examples_is_empty() -> None:
    out = builders.search(Walk(), BELOW, grey(0.35, 0.1), DARK.repeat(2), (0.2,))
    assert out.trace.reach.isnan().tolist() == [True, False]
    assert out.trace.reach[1] == pytest.approx(1)
    assert out.trace.loss_rose.tolist() == [False, True]


# The twin in bf16, and its rescue.


def stalling(model: Logits, margin: float) -> Logits:
    """`model` whose gradient vanishes where the two best logits are within `margin`."""

    def call(images: Tensor) -> Tensor:
        logits = model(images)
        top = logits.detach().topk(2, dim=1).values
        spread = (logits.amax(1) - logits.amin(1)).detach()[:, None]
        near = (top[:, :1] - top[:, 1:]) < margin * spread
        return torch.where(near, logits.detach(), logits)

    return call


def rescue_setting() -> tuple[Twin, oracles.Linear, Tensor, Tensor, tuple[float, ...]]:
    model = oracles.Linear((1, 4, 4), 3)
    images = oracles.middle_images(20, (1, 4, 4))
    labels = oracles.predicted(model, images)
    exact = model.distances(images, labels, "linf")
    nearest = float(exact.median()) * 1.01
    return Twin(stalling(model, 0.015), model, autocast=True), model, images, labels, (nearest,)


def test_rows_near_the_boundary_are_repaired_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    twin, model, images, labels, grid = rescue_setting()
    attack = oracles.build("pgd_linf", steps=60, rel_step=0.02, random_start=False)
    best = builders.search(attack, model, images, labels, grid)
    rescued = builders.search(attack, twin, images, labels, grid)
    same(best, rescued)
    monkeypatch.setattr(engine, "RESCUE_MARGIN", -1.0)
    lost = builders.search(attack, twin, images, labels, grid)
    assert torch.isfinite(lost.distance).sum() < torch.isfinite(best.distance).sum()


def test_rescue_uses_the_same_randomness_and_only_near_rows() -> None:
    twin, model, images, labels, grid = rescue_setting()
    fine = Recorder(model)
    attack = oracles.build("pgd_linf", steps=60, rel_step=0.02)
    best = builders.search(attack, model, images, labels, grid, seed=3, attack_name="pgd")
    out = builders.search(
        attack, Twin(twin.coarse, fine, autocast=True), images, labels, grid,
        deployed=model, seed=3, attack_name="pgd",
    )  # fmt: skip
    assert torch.equal(torch.isfinite(best.distance), torch.isfinite(out.distance))
    assert 0 < max(fine.sizes) < len(labels)


def test_a_float32_twin_is_not_asked_twice() -> None:
    _, model, images, labels, grid = rescue_setting()
    attack = oracles.build("pgd_linf", steps=10)
    out = builders.search(attack, model, images, labels, (0.5 * grid[0],))
    survivors = torch.isinf(out.distance)
    assert survivors.any()
    assert (out.queries[survivors] == 11).all()


def test_rescue_repairs_a_smaller_budget_after_a_larger_one_broke() -> None:
    """The distance that counts is the one at the smallest budget, also when it is found last."""
    twin, model, images, labels, grid = rescue_setting()
    attack = oracles.build("pgd_linf", steps=60, rel_step=0.02, random_start=False)
    budgets = (grid[0], 1.02 * grid[0], 1.2 * grid[0])
    same(
        builders.search(attack, model, images, labels, budgets),
        builders.search(attack, twin, images, labels, budgets),
    )


# Faults of a subject.


@pytest.mark.parametrize("error", [builders.cuda_memory, builders.cpu_memory])
@pytest.mark.parametrize("most", [1, 3, 8])
def test_out_of_memory_changes_no_result(error: Callable[[], Exception], most: int) -> None:
    model = oracles.convolution(2, 10)
    images = torch.rand(12, 2, 6, 5, generator=torch.Generator().manual_seed(1)).double()
    labels = oracles.predicted(model, images)
    attack = oracles.build("pgd_linf", steps=6, restarts=2)
    grid = (0.02, 0.05)
    roomy = builders.search(attack, model, images, labels, grid)
    tight = builders.search(attack, builders.limited(model, most, error), images, labels, grid)
    same(roomy, tight)
    assert torch.isfinite(roomy.distance).any()


def test_an_exception_of_the_view_names_the_image() -> None:
    def view(images: Tensor) -> Tensor:
        if (images.flatten(1).mean(1) > 0.35).any():
            raise ArithmeticError("too bright")
        return BELOW(images)

    with pytest.raises(
        UserError, match="ArithmeticError for a batch that begins with test image 7"
    ):
        builders.search(
            Walk(steps=4), view, grey(0.3, 0.1), DARK.repeat(2), (0.2,), deployed=BELOW,
            numbers=torch.tensor([7, 9]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z[:, :, None], r"gives logits of shape \(1, 2, 1\)"),
        (lambda z: z[:, 0], r"gives logits of shape \(1,\)"),
        (lambda z: {"logits": z}, "returns dict, not a tensor"),
        (lambda z: z * torch.nan, "NaN for test image 7"),
    ],
)
@pytest.mark.parametrize("where", ["view", "deployed"])
def test_unusable_answers_are_refused(
    change: Callable[[Tensor], Tensor], message: str, where: str
) -> None:
    def bad(images: Tensor) -> Tensor:
        return change(BELOW(images))

    view, deployed = (bad, BELOW) if where == "view" else (BELOW, bad)
    with pytest.raises(UserError, match=message):
        builders.search(
            Walk(), view, grey(0.2), DARK, (0.1,), deployed=deployed, numbers=torch.tensor([7])
        )


def test_the_result_is_a_function_of_numbers_not_of_positions() -> None:
    """The same example in another place of the block starts from the same random point."""
    model = oracles.convolution(1, 4)
    images = torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(2)).double()
    labels = oracles.predicted(model, images)
    attack = oracles.build("pgd_linf", steps=2, rel_step=0.02)
    grid = (0.08, 0.16, 0.32)
    whole = builders.search(attack, model, images, labels, grid)
    for order in itertools.islice(itertools.permutations(range(8)), 0, 40000, 9999):
        index = torch.tensor(order)
        out = builders.search(attack, model, images[index], labels[index], grid, numbers=index)
        torch.testing.assert_close(out.distance, whole.distance[index], rtol=1e-9, atol=0)
    other = builders.search(attack, model, images, labels, grid, seed=1)
    assert not torch.equal(other.distance, whole.distance)
