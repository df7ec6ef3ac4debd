"""Defects known from other attack libraries.

Each test holds one way in which a published implementation gave wrong results, changed what it was
lent, or wasted its budget. `DEFECTS` says which tests would fail if an attack of ours had a defect.
"""

from __future__ import annotations

import ast
import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.core import registry, rng
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.outcome import Outcome
from robustbench_defenses.engine.search import runs_of
from robustbench_defenses.engine.twin import Twin
from robustbench_defenses.evaluation import blocks, metrics
from tests.attacks import nets
from tests.attacks.test_properties import (
    ATTACKS,
    EVERY,
    FEW,
    FIXED,
    NEAREST,
    budgets,
    setting,
)
from tests.engine import builders, oracles

# Number, defect, and the tests (file::name, below `tests`; without a file: here). Left out are 24,
# 27, 28 and 30, which are about packages and not about attacks.
DEFECTS = {
    (1, "failures reported as successes"): [
        "test_failures_are_not_reported_as_successes",
        "attacks/test_properties.py::test_zero_gradient_gives_no_result",
    ],
    (2, "AutoAttack with a tenth of its iterations"): [
        "test_autoattack_has_the_published_budget",
        "test_survivors_get_the_declared_passes",
    ],
    (3, "C&W cannot move black and white pixels"): [
        "test_pixels_at_exactly_0_and_1_can_move",
        "attacks/test_strength.py::test_cw_comes_as_near_as_ddn",
    ],
    (4, "masked scores count as score 0"): [
        "attacks/test_properties.py::test_constant_added_to_all_logits_changes_nothing",
        "engine/test_losses.py::test_a_constant_added_to_all_logits_changes_nothing",
    ],
    (5, "a stopped run cannot go on"): [
        "engine/test_snapshot.py::test_every_attack_goes_on",
        "cli/test_resume.py::test_killed_at_any_moment_the_result_is_equal",
    ],
    (6, "DeepFool stalls, NaN images"): [
        "test_nan_is_never_returned",
        "attacks/test_deepfool.py::test_equals_foolbox_image_by_image",
        "attacks/test_strength.py::test_minimum_norms_of_foolbox",
    ],
    (7, "NaN at eps = 0"): [
        "test_eps_zero_returns_the_image_itself",
        "test_accuracy_at_eps_zero_is_the_clean_one",
    ],
    (8, "L1 without the L1 ball"): [
        "attacks/test_strength.py::test_l1_attacks_beat_scaled_gradients",
        "core/test_norms.py::test_l1_projection_of_images_equals_the_sorted_form",
        "core/test_norms.py::test_nearest_point",
    ],
    (9, "DLR crashes with few classes"): [
        "test_any_number_of_classes_with_survivors",
        "attacks/test_properties.py::test_any_number_of_classes",
    ],
    (10, "results depend on batch mates"): [
        "test_batch_mates_change_nothing",
        "attacks/test_properties.py::test_results_do_not_depend_on_the_batch",
        "attacks/test_properties.py::test_ensembles_do_not_depend_on_the_batch",
    ],
    (11, "iterates that are not scored"): [
        "test_every_point_of_a_run_is_scored",
        "test_every_point_of_a_search_is_scored",
        "test_the_nearest_point_asked_is_the_one_reported",
        "attacks/test_properties.py::test_nearest_image_is_the_one_reported",
        "test_the_last_update_is_scored",
    ],
    (12, "robust accuracy rises with eps"): [
        "test_curves_fall",
        "evaluation/test_evaluate.py::test_an_envelope_stands_on_smaller_budgets",
        "attacks/test_properties.py::test_sweep_equals_separate_runs",
    ],
    (13, "NaN logits count as answers"): [
        "test_nan_logits_are_told_not_counted",
        "test_nan_logits_away_from_the_images_are_told",
        "test_a_single_nan_is_told",
    ],
    (14, "one hopeless image fails the batch"): [
        "test_one_hopeless_image_spoils_nothing",
        "test_one_image_without_a_start_fails_no_other",
    ],
    (15, "modes and buffers changed"): ["test_evaluation_leaves_the_subject_as_it_was"],
    (16, "gradients left in the weights"): [
        "test_evaluation_leaves_the_subject_as_it_was",
        "test_a_float32_model_sees_float32",
    ],
    (17, "global random state changed"): ["test_evaluation_leaves_the_subject_as_it_was"],
    (18, "the growing file written again for each batch"): ["test_blocks_are_written_once"],
    (19, "the range of images is not checked"): [
        "test_the_range_of_images_is_checked",
        "test_files_of_the_wrong_range_are_refused",
    ],
    (20, "broken examples stay in the batch"): [
        "test_every_point_of_a_run_is_scored",
        "test_broken_images_cost_nothing_more",
    ],
    (21, "DeepFool pays for the last image of its batch"): [
        "test_deepfool_pays_for_its_own_steps_only",
        "test_passes_of_an_image_do_not_depend_on_others",
    ],
    (22, "C&W needs many passes for one step"): ["test_cw_asks_once_a_step"],
    (23, "points asked twice, broken images attacked again"): [
        "test_no_point_is_asked_twice",
        "test_restarts_attack_survivors_only",
    ],
    (25, "walks that have ended are asked again"): [
        "test_converged_walks_are_not_asked_again",
        "test_a_walk_with_tiny_steps_rests",
        "test_passes_of_an_image_do_not_depend_on_others",
    ],
    (26, "few steps fail; rounded images are not adversarial"): [
        "test_few_steps_are_no_special_case",
        "test_returned_images_are_misclassified_afresh",
    ],
    (29, "float64 reaches a float32 model"): ["test_a_float32_model_sees_float32"],
}
# Mistakes that cost strength, and the tests in attacks/test_strength.py that would tell of them.
STRENGTH = {
    (1, "APGD in bf16 alone"): [
        "test_rescue_finds_what_bf16_misses",
        "test_bf16_breaks_as_many",
    ],
    (2, "steps that bf16 cannot see"): [
        "test_tiny_distances_on_bright_colours_survive_bf16",
        "test_tiny_budgets_survive_bf16",
        "engine/test_twin.py::test_steps_that_bf16_rounds_away_are_seen",
    ],
    (3, "Square in bf16 alone"): [
        "test_square_sees_small_improvements_in_bf16",
        "test_bf16_breaks_as_many",
        "attacks/test_square.py::test_rows_near_the_boundary_are_asked_again_in_float32",
    ],
    (4, "FAB in bf16 alone"): [
        "test_coarse_bf16_finds_points_as_near",
        "test_bf16_finds_points_as_near",
    ],
    (5, "DeepFool in bf16 alone"): ["test_coarse_bf16_finds_points_as_near"],
    (6, "DDN judged by medians"): [
        "test_coarse_bf16_finds_points_as_near",
        "test_bf16_finds_points_as_near",
    ],
    (7, "C&W too slow for robust networks"): ["test_cw_comes_as_near_as_ddn"],
    (8, "k steps that score k points"): [
        "attacks/test_defects.py::test_every_point_of_a_run_is_scored",
        "attacks/test_defects.py::test_earlier_successes_are_kept",
    ],
}

GRADIENT = [
    name for name in oracles.attacks() if name.split("_")[0] in ("fgsm", "bim", "mim", "pgd")
]
EPS = {"linf": 0.12, "l2": 0.8, "l1": 3.0}
STEPS = 40
SHORT = {"steps": 3, "search_steps": 2, "n_queries": 6, "init_draws": 12, "init_blends": 8}


def test_every_defect_has_its_tests() -> None:
    """The numbers are all there once, and the tests that stand beside them exist."""
    numbers = [number for number, _ in DEFECTS]
    assert numbers == [n for n in range(1, 30) if n not in (24, 27, 28)]
    assert [number for number, _ in STRENGTH] == list(range(1, 9))
    tests = Path(__file__).parents[1]
    named = [(name, "attacks/test_defects.py") for names in DEFECTS.values() for name in names]
    named += [(name, "attacks/test_strength.py") for names in STRENGTH.values() for name in names]
    for name, here in named:
        file, _, function = name.rpartition("::")
        written = ast.parse((tests / (file or here)).read_text()).body
        assert function in {part.name for part in written if isinstance(part, ast.FunctionDef)}
        assert function.startswith("test_")


def test_all_gradient_attacks_are_here() -> None:
    assert {"fgsm", "fgsm_l2", "bim", "mim", "pgd", "pgd_l2", "pgd_l1"} <= set(GRADIENT)


def digits_setting(count: int = 100) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = nets.digits("test")
    return nets.trained(), images[:count], labels[:count]


def short(name: str) -> dict[str, Any]:
    """Those of `SHORT` that the attack has."""
    known = {param.name for param in registry.find("attack", name).params}
    return {key: value for key, value in SHORT.items() if key in known}


def allowed(eps: float) -> Tensor:
    return largest_allowed(torch.tensor(eps).double())


def one_of(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64 and a single image with pixels at 0 and 1."""
    model, images, labels = setting(name, count=1)
    return model, images, labels


def trail(
    attack: Any, model: Logits, images: Tensor, labels: Tensor, eps: float
) -> tuple[list[Tensor], Outcome]:
    """All points in order that a run on a single image asks about, those of the verdict last; one
    that breaks nothing has the last point of each of its runs judged."""
    search, judge = builders.Recorder(model), builders.Recorder(model)
    twin = Twin(search, search, autocast=False)
    options = {"twin": twin, "deployed": judge, "batch_size": 1}
    out = oracles.run(attack, model, images, labels, (eps,), **options)
    return [*torch.cat(search.asked), *torch.cat(judge.asked)], out


def wrong_at(model: Logits, point: Tensor, label: int) -> Logits:
    """`model`, but exactly at `point` misclassified."""

    def call(images: Tensor) -> Tensor:
        logits = model(images)
        there = (images == point).flatten(1).all(1)[:, None]
        other = F.one_hot(torch.tensor((label + 1) % logits.shape[1]), logits.shape[1])
        return torch.where(there, other.to(logits), logits)

    return call


# Wrong results.


class BlackIsWrong(oracles.Constant):
    """Class 0 wherever it is asked but at the black image, and no gradient anywhere."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)
        black = (images.flatten(1) == 0).all(1)[:, None]
        return logits + 2 * black * torch.eye(self.classes).to(logits)[1]


@pytest.mark.parametrize("name", EVERY)
def test_failures_are_not_reported_as_successes(name: str) -> None:
    """A subject that nothing can move: success is the clean error, and no image gets worse."""
    images = oracles.middle_images(12, (1, 3, 3)).float()
    labels = torch.zeros(12).long()
    labels[::4] = 3  # clean errors
    attack, model = oracles.build(name, **SHORT), BlackIsWrong()
    eps = EPS[attack.norm]
    out = oracles.run(attack, model, images, labels, (eps,), keep_points=True)
    assert torch.isfinite(out.distance).tolist() == (labels == 3).tolist()
    assert (out.distance[::4] == 0).all()
    assert not out.broken[:, labels == 0].any()
    returned = rrd.attack(model, images, labels, name, eps=eps, **short(name))
    assert returned.broken.tolist() == (labels == 3).tolist()
    assert out.points is not None
    for points in (out.points, returned.images):
        assert (oracles.predicted(model, points) == 0).all()
    if name in FIXED:
        points = craft(model, attack, images, labels, eps)
        assert (distance(points, images, attack.norm) <= allowed(eps)).all()
    elif name in NEAREST:
        points = craft(model, attack, images, labels, torch.inf)
        assert torch.equal(points[labels == 0], images[labels == 0])


@pytest.mark.parametrize("name", [*ATTACKS, "cw tanh"])
def test_pixels_at_exactly_0_and_1_can_move(name: str) -> None:
    """With tanh in place of the clip too, whose ends are flat."""
    net, images, labels = digits_setting(25)
    right = oracles.predicted(net, images) == labels
    images, labels = images[right], labels[right]
    at_bound = (images == 0) | (images == 1)
    assert at_bound.float().mean() > 0.3
    name, *form = name.split()
    more: dict[str, object] = {"form": form[0], "steps": 40} if form else {"steps": 20}
    attack = oracles.build(name, **{**FEW, "search_steps": 3, **more})
    points = craft(net, attack, images, labels, EPS[attack.norm])
    moved = ((points != images) & at_bound).flatten(1).any(1)
    # L1 steps change few pixels; searches that find nothing return the image.
    assert moved.float().mean() > (0.3 if attack.norm == "l1" else 0.8 if name in NEAREST else 0.99)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_zero_returns_the_image_itself(name: str, dtype: torch.dtype) -> None:
    """0/0 in a projection gives NaN, which reads as success."""
    net, images, labels = digits_setting(20)
    net = net.to(dtype)
    try:
        points = craft(net, oracles.build(name, **FEW), images.to(dtype), labels, 0.0)
    finally:
        net.to(torch.float32)
    assert torch.equal(points, images.to(dtype))


@pytest.mark.parametrize("name", EVERY)
def test_accuracy_at_eps_zero_is_the_clean_one(name: str, tmp_path: Path) -> None:
    net, images, labels = digits_setting(8)
    labels = oracles.predicted(net, images)
    labels[:2] = (labels[:2] + 1) % 10
    stored(tmp_path, images, labels)
    found = rrd.evaluate(
        net, name, dataset=f"npz:{tmp_path}/set.npz", eps=0.0, settings=short(name),
        results=tmp_path / "results", threads=1,
    )  # fmt: skip
    assert [point.robust_accuracy for point in found.curve] == [6 / 8]
    assert found.clean_accuracy == 6 / 8


def stored(folder: Path, images: Tensor, labels: Tensor) -> None:
    np.savez(folder / "set.npz", images=images.numpy(), labels=labels.numpy(), classes=10)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12])
def test_nan_is_never_returned(name: str, scale: float) -> None:
    """Flat, vanishing and saturated losses, and an image whose gradient is zero among others."""
    net, images, _ = digits_setting(6)
    images = images.clone()
    images[3] = 0
    attack = oracles.build(name, **SHORT)

    def scaled(points: Tensor) -> Tensor:
        return scale * net(points)

    labels = oracles.predicted(scaled, images)
    if name in ATTACKS:
        points = craft(scaled, attack, images, labels, 0.3)
        assert torch.isfinite(points).all()
        assert ((points >= 0) & (points <= 1)).all()
    out = oracles.run(attack, scaled, images, labels, (0.3,))
    assert out.invalid_claims == 0
    assert not out.distance.isnan().any()


def test_saturated_logits_do_not_stop_the_l2_attack() -> None:
    """Gradients of 1e-20 have a direction: dividing by max(norm, 1e-12) would stand still."""
    net, images, labels = digits_setting()
    attack = oracles.build("pgd_l2", steps=20, random_start=False)
    plain = craft(net, attack, images, labels, EPS["l2"])
    with torch.no_grad():
        logits = net(images)
        gap = logits.gather(1, labels[:, None]) - logits.scatter(
            1, labels[:, None], -torch.inf
        ).amax(1, keepdim=True)
    factor = 45 / gap.clamp_min(1)[:, :, None, None]  # clean gaps of about 45: gradients of 1e-19
    scaled = craft(
        lambda x: factor[:, :, 0, 0] * net(x), attack, images, labels, EPS["l2"]
    )  # fmt: skip
    with torch.no_grad():
        clean = (net(plain).argmax(1) == labels).float().mean()
        saturated = (net(scaled).argmax(1) == labels).float().mean()
    assert clean < 0.5
    assert saturated < clean + 0.2


@pytest.mark.parametrize("name", ATTACKS)
def test_batch_mates_change_nothing(name: str) -> None:
    """Alone, among others, among extreme others: the same image (to float tolerance)."""
    model, images, labels = setting(name, count=8)
    attack = oracles.build(name, **FEW)
    eps = EPS[attack.norm]
    together = craft(model, attack, images, labels, eps)
    wild = torch.where(torch.arange(8).view(-1, 1, 1, 1) == 1, images, images.round())
    keys = rng.run_keys(0, "craft", torch.arange(8))
    among = craft(model, attack, wild, labels, eps)
    alone = craft(model, attack, images[1:2], labels[1:2], eps, key=keys[1:2])
    assert (alone != images[1:2]).any()
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(among[1:2], alone, rtol=0, atol=1e-9)


UNKNOWN = 10  # a class that no image has


def talking(net: nn.Module) -> Logits:
    """`net` with one more class, which it never answers."""
    return lambda points: F.pad(net(points), (0, 1), value=-1000.0)


@pytest.mark.parametrize("name", EVERY)
def test_one_hopeless_image_spoils_nothing(name: str) -> None:
    """One image shall become what none can be: the others' results and one that is open."""
    model, images, labels = setting(name, count=10)
    attack = oracles.build(name, **SHORT)
    grid = (2 * EPS[attack.norm],)
    others = torch.arange(10) != 6
    target = torch.where(others, -1, UNKNOWN)
    out = oracles.run(attack, talking(model), images, labels, grid, target=target)
    numbers = others.nonzero()[:, 0]
    alone = oracles.run(
        attack, talking(model), images[others], labels[others], grid, numbers=numbers
    )
    assert torch.isinf(out.distance[6])
    assert torch.isfinite(alone.distance).any()
    torch.testing.assert_close(out.distance[others], alone.distance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["boundary", *(n for n in NEAREST if n.startswith("brendel"))])
def test_one_image_without_a_start_fails_no_other(name: str) -> None:
    """Neither noise nor any image is what it is to become: 49 results and one that is open."""
    net, images, labels = digits_setting(60)
    with torch.no_grad():
        right = (net(images).argmax(1) == labels).nonzero()[:50, 0]
    images, labels = images[right], labels[right]
    target = torch.full_like(labels, -1)
    target[17] = UNKNOWN
    attack = oracles.build(name, steps=20, init_draws=30)
    out = oracles.run(attack, talking(net), images, labels, (), target=target)
    assert torch.isinf(out.distance).nonzero().tolist() == [[17]]
    others = oracles.run(attack, net, images[:17], labels[:17], ())
    torch.testing.assert_close(others.distance, out.distance[:17], rtol=0.05, atol=0)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10, 100])
def test_any_number_of_classes_with_survivors(name: str, classes: int) -> None:
    """Survivors see every run and target; of the wrong classes at most those that there are."""
    model, images, labels = setting(name, count=1, classes=classes)
    attack = oracles.build(name, **SHORT)
    out = oracles.run(attack, model, images, labels, (1e-6,))
    assert (out.distance > 0).all()
    forward = {"square": 6, "apgd_t": 3, "fab_t": 3, "apgd_ce": 3}
    runs = {"apgd_t": min(9, classes - 1), "fab_t": min(9, classes - 1)}
    if name.startswith("autoattack"):
        if name.endswith("l1"):
            runs |= {"apgd_t": min(5, classes - 1), "apgd_ce": 5}
        asked = sum(passes * runs.get(member, 1) for member, passes in forward.items())
        assert (out.queries == 1 + asked).all()
    elif name.startswith(("apgd", "fab", "square")):
        family = name.removesuffix("_linf").removesuffix("_l2").removesuffix("_l1")
        assert (out.queries == 1 + forward.get(family, 3) * runs.get(family, 1)).all()


@pytest.mark.parametrize("name", ["bim", "mim_linf", "pgd_linf", "pgd_l2", "pgd_l1", "fgsm_linf"])
def test_the_last_update_is_scored(name: str) -> None:
    """One step on a linear subject from the image: only the point after it is wrong."""
    images = oracles.middle_images(10, (1, 4, 4))
    model = oracles.Linear((1, 4, 4), 2)
    with torch.no_grad():  # the boundary passes through the middle of the images
        logits = model(images).mean(0)
        model.bias += logits.flip(0)
    labels = oracles.predicted(model, images)
    attack = oracles.build(name, steps=1, random_start=False, rel_step=1.0, quantile=0.99)
    exact = model.distances(images, labels, attack.norm)
    assert exact.max() < 0.4  # one L1 step moves one pixel: not past the box
    for i in range(10):
        eps = 1.05 * float(exact[i])
        out = oracles.run(attack, model, images[i : i + 1], labels[i : i + 1], (eps,))
        assert torch.isfinite(out.distance).all()
        assert out.queries.tolist() == [2]  # the clean image and the one start


def test_earlier_successes_are_kept() -> None:
    """Long steps reach the target and leave it again; an iterate in between counts."""
    net, images, labels = digits_setting(200)
    attack = oracles.build("pgd_linf", steps=9, rel_step=1.9)
    target = (labels + 1) % 10
    points = craft(net, attack, images, labels, 0.25, target=target)
    with torch.no_grad():
        right = net(images).argmax(1) == labels
        last = right & (net(points).argmax(1) == target)
    out = oracles.run(attack, net, images, labels, (0.25,), name="craft", target=target)
    every = torch.isfinite(out.distance) & right
    assert bool((every | ~last).all())
    assert int(every.sum()) > 1.2 * int(last.sum()) > 0


def chosen_points(points: list[Tensor], images: Tensor, norm: str, most: Tensor) -> list[int]:
    """The second, the middle and the last point of a trail that lies off the image, in the ball."""
    far = distance(torch.stack(points), images.expand(len(points), *images.shape[1:]), norm)
    first: dict[bytes, int] = {}  # a point that is asked again counts where it was asked first
    for place, point in enumerate(points):
        first.setdefault(point.numpy().tobytes(), place)
    inside = [place for place in first.values() if 0 < far[place] <= most]
    return sorted({inside[min(1, len(inside) - 1)], inside[len(inside) // 2], inside[-1]})


@pytest.mark.parametrize("name", FIXED)
def test_every_point_of_a_run_is_scored(name: str) -> None:
    """Wrong at one point of its way alone, first, in the middle or made by the last update: the
    run ends there, and costs nothing more."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **{**FEW, "targets": 2})
    eps = 1e-4 * EPS[attack.norm]
    points, whole = trail(attack, model, images, labels, eps)
    assert torch.isinf(whole.distance).all()
    asked, runs = int(whole.queries) - 1, runs_of(attack, 10)
    judged = points[-1 - runs :]
    assert torch.equal(judged[0], images[0]), "the image itself and the last point of each run"
    for place in chosen_points(points, images, attack.norm, allowed(eps)):
        subject = wrong_at(model, points[place], int(labels))
        _, out = trail(attack, subject, images, labels, eps)
        length = distance(points[place][None], images, attack.norm)
        torch.testing.assert_close(out.distance, length, rtol=1e-12, atol=0)
        assert int(out.queries) <= 1 + min(place + 1, asked)


@pytest.mark.parametrize("name", NEAREST)
def test_every_point_of_a_search_is_scored(name: str) -> None:
    """The same of minimum-norm attacks, far from every boundary."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **FEW, targets=2, search_steps=2)

    def aloof(points: Tensor) -> Tensor:
        return model(points) + 50 * F.one_hot(labels[:1], 10)

    points, whole = trail(attack, aloof, images, labels, 1.0)
    assert torch.isinf(whole.distance).all()
    judged = points[-1 - runs_of(attack, 10) :]
    assert torch.equal(judged[0], images[0]), "the image itself and the last point of each run"
    for place in chosen_points(points, images, attack.norm, torch.tensor(torch.inf)):
        _, out = trail(attack, wrong_at(aloof, points[place], int(labels)), images, labels, 1.0)
        length = distance(points[place][None], images, attack.norm)
        torch.testing.assert_close(out.distance, length, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NEAREST)
def test_the_nearest_point_asked_is_the_one_reported(name: str) -> None:
    model, images, labels = setting(name, count=4)
    attack = oracles.build(name, **FEW)
    found = 0
    for image, label in zip(images.split(1), labels.split(1)):
        points, out = trail(attack, model, image, label, 1.0)
        seen = torch.stack(points)
        wrong = oracles.predicted(model, seen) != label
        length = distance(seen, image.expand_as(seen), attack.norm)[wrong]
        found += len(length)
        if len(length):
            assert out.distance[0] <= length.min() * (1 + 1e-12)
        else:
            assert torch.isinf(out.distance[0])
    assert found > 0


@pytest.mark.parametrize("name", [name for name in EVERY if name not in NEAREST])
def test_curves_fall(name: str) -> None:
    """Broken at the smallest budget and, by runs of their own, at no larger one: what breaks at a
    budget counts at all above it."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **SHORT)
    small = 1e-4 * EPS[attack.norm]
    grid = (small, 2.7 * small, 7.3 * small)
    points, _ = trail(attack, model, images, labels, small)
    place = chosen_points(points, images, attack.norm, allowed(small))[0]
    subject = wrong_at(model, points[place], int(labels))

    def robust(*budgets: float, at: float) -> float:
        out = oracles.run(attack, subject, images, labels, budgets, batch_size=1)
        return metrics.robust_accuracy(out.distance.numpy(), at)

    assert [robust(eps, at=eps) for eps in grid] == [0, 1, 1]
    assert robust(*grid, at=grid[1]) == robust(*grid, at=grid[2]) == 0


def test_nan_logits_are_told_not_counted() -> None:
    net, images, labels = digits_setting(20)

    def sick(points: Tensor) -> Tensor:
        logits = net(points)
        return torch.where(points.flatten(1).mean(1, keepdim=True) > 0.33, torch.nan, logits)

    with pytest.raises(UserError, match="NaN for test image"):
        rrd.attack(sick, images, labels, "pgd", eps=0.1)
    with pytest.raises(UserError, match="NaN for test image"):
        oracles.run(oracles.build("pgd_linf", steps=5), sick, images, labels, (0.1,))


@pytest.mark.parametrize("name", EVERY)
def test_nan_logits_away_from_the_images_are_told(name: str) -> None:
    """Finite at the images themselves, NaN wherever an attack goes from there."""
    model, images, labels = setting(name, count=4)

    def sick(points: Tensor) -> Tensor:
        clean = (points[:, None] == images[None]).flatten(2).all(2).any(1, keepdim=True)
        return torch.where(clean, model(points), torch.nan)

    attack = oracles.build(name, **SHORT)
    with pytest.raises(UserError, match="NaN for test image"):
        oracles.run(attack, sick, images, labels, (EPS[attack.norm],))
    with pytest.raises(UserError, match="NaN for test image"):
        rrd.attack(sick, images, labels, name, eps=EPS[attack.norm], **short(name))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ATTACKS)
def test_a_single_nan_is_told(name: str) -> None:
    """At one point in the middle: the largest of NaN is class 0, which here is the right one."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **SHORT)

    def turned(points: Tensor) -> Tensor:
        logits: Tensor = model(points).roll(-int(labels), 1)
        return logits

    zero = torch.zeros_like(labels)
    eps = 1e-4 * EPS[attack.norm]
    points, _ = trail(attack, turned, images, zero, eps)
    place = chosen_points(points, images, attack.norm, torch.tensor(torch.inf))[0]

    def sick(asked: Tensor) -> Tensor:
        there = (asked == points[place]).flatten(1).all(1)[:, None]
        return torch.where(there, torch.nan, turned(asked))

    with pytest.raises(UserError, match="NaN for test image 0"):
        trail(attack, sick, images, zero, eps)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 255 * x, r"\[0, 1\]"),
        (lambda x: 2 * x - 1, r"\[0, 1\]"),
        (lambda x: x.masked_fill(x == x.max(), torch.nan), r"\[0, 1\]"),
        (lambda x: (255 * x).to(torch.uint8), "not float"),
    ],
)
def test_the_range_of_images_is_checked(name: str, change: object, message: str) -> None:
    net, images, labels = digits_setting(8)
    with pytest.raises(UserError, match=message):
        rrd.attack(net, change(images), labels, name, eps=0.1)  # type: ignore[operator]


def test_files_of_the_wrong_range_are_refused(tmp_path: object) -> None:
    net, images, labels = digits_setting(8)
    for name, wrong in (("levels", 255 * images), ("centred", images - 0.5)):
        np.savez(f"{tmp_path}/{name}.npz", images=wrong.numpy(), labels=labels.numpy())
        with pytest.raises(UserError, match="not 0 to 1"):
            rrd.evaluate(
                net, "pgd", dataset=f"npz:{tmp_path}/{name}.npz", eps=0.1, results=f"{tmp_path}/r"
            )


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("steps", [1, 9])
def test_few_steps_are_no_special_case(name: str, steps: int) -> None:
    net, images, labels = digits_setting(6)
    attack = oracles.build(name, **{**FEW, "steps": steps, "n_queries": steps})
    out = oracles.run(attack, net, images, labels, (EPS[attack.norm],))
    forward, backward = attack.passes(10)
    runs = runs_of(attack, 10)
    assert int(out.queries.max()) <= 2 + runs * forward
    assert (out.cost.backward > 0) == (backward > 0)


@pytest.mark.parametrize("name", EVERY)
def test_returned_images_are_misclassified_afresh(name: str) -> None:
    """No image is rounded to levels or otherwise changed after its verdict."""
    model, images, labels = setting(name, count=12)
    attack = oracles.build(name, **FEW)
    out = oracles.run(attack, model, images, labels, budgets(attack), keep_points=True)
    broken = torch.isfinite(out.distance)
    assert broken.any()
    assert out.points is not None
    points = out.points[broken]
    assert (oracles.predicted(model, points) != labels[broken]).all()
    length = distance(points, images[broken], attack.norm)
    torch.testing.assert_close(length, out.distance[broken], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", EVERY)
def test_a_float32_model_sees_float32(name: str) -> None:
    """Verdicts, searches and image runs; and float64 images stay what they are."""
    net, images, labels = digits_setting(4)
    net = copy.deepcopy(net)
    attack = oracles.build(name, **SHORT)
    eps = EPS[attack.norm]
    for dtype in (torch.float32, torch.float64):
        asked: set[torch.dtype] = set()

        def typed(points: Tensor, asked: set[torch.dtype] = asked) -> Tensor:
            asked.add(points.dtype)
            logits: Tensor = net(points.float())
            return logits

        given = images.to(dtype)
        oracles.run(attack, typed, given, labels, (eps,))
        returned = rrd.attack(typed, given, labels, name, eps=eps, **short(name))  # type: ignore[arg-type]
        assert asked == {dtype}
        assert returned.images.dtype == dtype
    # Behind a bare function nobody can freeze the weights.
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_a_verdict_that_never_agrees_ends_the_run(name: str) -> None:
    """A view that is misclassified where the deployed subject is not: refused claims are part of
    the budget, and no result."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, **{**SHORT, "steps": 20, "n_queries": 50}, targets=2)
    runs = runs_of(attack, 10)
    left = [2 * (2 + runs * attack.passes(10)[0])]

    def counted(points: Tensor) -> Tensor:
        left[0] -= len(points)
        if left[0] < 0:
            raise RuntimeError("asked far beyond the budget")
        logits: Tensor = model(points)
        return logits

    def right(points: Tensor) -> Tensor:
        return F.one_hot(labels.expand(len(points)), 10).double()

    twin = Twin(counted, counted, autocast=False)
    grid = (2 * EPS[attack.norm],)
    out = oracles.run(attack, model, images, labels, grid, twin=twin, deployed=right)
    assert torch.isinf(out.distance).all()
    assert int(out.queries) <= 2 + runs * attack.passes(10)[0]


# Side effects.


@pytest.mark.parametrize("name", EVERY)
def test_evaluation_leaves_the_subject_as_it_was(name: str, tmp_path: Path) -> None:
    """Mode of each part, buffers, gradients, flags, and three global random states."""
    _, images, labels = digits_setting(6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.5),
            nn.Flatten(), nn.Linear(144, 10),
        )  # fmt: skip
    net.train()
    net[1].eval()  # frozen by the user
    net[0].weight.requires_grad_(False)
    net[6].weight.grad = torch.full_like(net[6].weight, 0.5)
    stored(tmp_path, images, labels)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    flags = [weight.requires_grad for weight in net.parameters()]
    randoms = torch.random.get_rng_state(), random.getstate(), repr(np.random.get_state())

    def same() -> None:
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
        assert modes == [part.training for part in net.modules()]
        assert flags == [weight.requires_grad for weight in net.parameters()]
        assert torch.equal(net[6].weight.grad, torch.full_like(net[6].weight, 0.5))
        others = [weight for weight in net.parameters() if weight is not net[6].weight]
        assert all(weight.grad is None for weight in others)
        assert torch.equal(randoms[0], torch.random.get_rng_state())
        assert randoms[1:] == (random.getstate(), repr(np.random.get_state()))

    options = {"dataset": f"npz:{tmp_path}/set.npz", "results": tmp_path / "r", "eps": 0.1}
    threads = torch.get_num_threads()
    rrd.evaluate(net, name, settings=short(name), threads=threads, **options)  # type: ignore[arg-type]
    same()
    first = rrd.attack(net, images, labels, name, eps=0.1, **short(name))
    same()
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        again = rrd.attack(net, images, labels, name, eps=0.1, **short(name))
    assert torch.equal(first.images, again.images)
    calls: list[int] = []

    def fails(part: nn.Module, asked: object) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("in the middle")

    hook = net.register_forward_pre_hook(fails)
    with pytest.raises(Exception, match="in the middle"):
        rrd.attack(net, images, labels, name, eps=0.1, **short(name))
    hook.remove()
    same()


# Waste.


def test_blocks_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a long evaluation grows with it, not with its square."""
    net, images, labels = digits_setting(40)
    stored(tmp_path, images, labels)
    written: list[tuple[str, int]] = []
    write = blocks.write_npz

    def noted(path: Path, arrays: dict[str, object]) -> None:
        write(path, arrays)
        written.append((path.name, path.stat().st_size))

    monkeypatch.setattr(blocks, "write_npz", noted)
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 5)
    rrd.evaluate(
        net, "pgd", dataset=f"npz:{tmp_path}/set.npz", eps=0.1, settings={"steps": 2},
        results=tmp_path / "results", threads=1, n=-1,
    )  # fmt: skip
    assert [name for name, _ in written] == [f"{start}.npz" for start in range(0, 40, 5)]
    assert max(size for _, size in written) <= 1.2 * min(size for _, size in written)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_has_the_published_budget(norm: str) -> None:
    """100 iterations a run and 5,000 queries; APGD in L1 with five restarts and five targets."""
    attack = oracles.build(f"autoattack_{norm}")
    starts, targets = (5, 5) if norm == "l1" else (1, 9)
    members = [(name, runs_of(one, 10), one.passes(10)) for name, one in attack.members(10)]
    assert members == [
        ("apgd_ce", starts, (100, 100)), ("apgd_t", targets, (100, 100)), ("fab_t", 9, (100, 100)),
        ("square", 1, (5000, 0)),
    ]  # fmt: skip
    # And these are what an image that survives costs.
    model, images, labels = one_of(norm)
    short = oracles.build(f"autoattack_{norm}", n_queries=20)
    out = oracles.run(short, model, images, labels, (1e-6,))
    assert not out.broken.any()
    assert out.cost.backward == 100 * (starts + targets + 9)
    assert out.queries.tolist() == [1 + out.cost.backward + 20]


@pytest.mark.parametrize("name", FIXED)
def test_survivors_get_the_declared_passes(name: str) -> None:
    model, images, labels = setting(name, count=6)
    attack = oracles.build(name, **FEW)
    out = oracles.run(attack, model, images, labels, (1e-6,))
    assert torch.isinf(out.distance).all()
    forward, backward = attack.passes(10)
    runs = runs_of(attack, 10)
    assert out.cost.backward == 6 * runs * backward
    assert (out.queries == 1 + runs * forward).all()


def test_broken_images_cost_nothing_more() -> None:
    """A budget that breaks everything needs a few of the 40 passes; survivors need all 40."""
    net, images, labels = digits_setting(200)
    out = oracles.run(oracles.build("pgd_linf", steps=STEPS), net, images, labels, (0.5,))
    assert torch.isfinite(out.distance).all()
    assert out.cost.backward / len(labels) < 10
    strong = oracles.run(oracles.build("pgd_linf", steps=STEPS), net, images, labels, (0.01,))
    survivors = torch.isinf(strong.distance)
    assert survivors.float().mean() > 0.8
    assert (strong.queries[survivors] == 1 + STEPS).all()


def test_restarts_attack_survivors_only() -> None:
    net, images, labels = digits_setting(200)
    one = oracles.run(oracles.build("pgd_linf", steps=10), net, images, labels, (0.1,))
    five = oracles.run(
        oracles.build("pgd_linf", steps=10, restarts=5), net, images, labels, (0.1,), batch_size=8
    )
    left = int(torch.isinf(one.distance).sum())
    assert 0 < left < 200
    first = one.cost.backward
    assert five.cost.backward <= first + left * 4 * 10 + 8 * 10  # at most a batch of speculation


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if runs_of(oracles.build(name), 10) == 1]
)
def test_passes_of_an_image_do_not_depend_on_others(name: str) -> None:
    """Nobody is asked again because another image of the batch goes on."""
    model, images, labels = setting(name, count=8)
    attack = oracles.build(name, **FEW)
    eps = (EPS[attack.norm],)
    whole = oracles.run(attack, model, images, labels, eps)
    for i in (0, 3, 5):
        alone = oracles.run(
            attack, model, images[i : i + 1], labels[i : i + 1], eps, numbers=torch.tensor([i])
        )
        assert alone.queries.tolist() == whole.queries[i : i + 1].tolist()


@pytest.mark.parametrize("name", ["deepfool_l2", "deepfool_linf"])
def test_deepfool_pays_for_its_own_steps_only(name: str) -> None:
    """One forward pass a step for all classes, a backward pass for each other class; no step after
    the last one of the image itself."""
    net, images, labels = digits_setting(60)
    right = oracles.predicted(net, images) == labels
    out = oracles.run(oracles.build(name, steps=50, refine=False), net, images, labels, ())
    steps = out.queries - 1
    assert (steps[~right] == 0).all()
    assert 0 < steps[right].min() < steps.max() < 50, "some images end before others"
    assert out.cost.backward == 9 * int(steps.sum())


def test_cw_asks_once_a_step() -> None:
    net, images, labels = digits_setting(6)
    attack = oracles.build("cw", steps=20, search_steps=9, abort_early=False)
    out = oracles.run(attack, net, images, labels, ())
    right = oracles.predicted(net, images) == labels
    assert (out.queries[right] == 1 + 9 * 20).all()
    assert out.cost.backward == 9 * 20 * int(right.sum())


@pytest.mark.parametrize("name", ["fab_t_linf", "fab_t_l2", "fab_t_l1"])
def test_no_point_is_asked_twice(name: str) -> None:
    """One question per step and target; only the image itself begins every target's run."""
    model, images, labels = one_of(name)
    attack = oracles.build(name, steps=10, targets=3)
    points, out = trail(attack, model, images, labels, 1.0)
    assert out.queries.tolist() == [1 + 3 * 10]
    asked = torch.stack(points[:30]).flatten(1)
    assert len(asked.unique(dim=0)) == 30 - 2


@pytest.mark.parametrize("name", ["boundary", "brendel_bethge_l2"])
def test_converged_walks_are_not_asked_again(name: str) -> None:
    """Examples that end, and those that never start, leave: passes are those of the others."""
    net, images, labels = digits_setting(30)
    target = torch.full_like(labels, -1)
    target[::3] = UNKNOWN
    attack = oracles.build(name, steps=150, init_draws=20)
    out = oracles.run(attack, talking(net), images, labels, (), target=target)
    tried = oracles.predicted(net, images) == labels
    hopeless = tried & (target == UNKNOWN)
    assert hopeless.sum() > 5
    # The clean image, its own gradient (Brendel-Bethge), twenty draws, one image of another class.
    assert (out.queries[hopeless] <= 1 + 1 + 20 + 1).all()
    assert (out.queries[tried & ~hopeless] > 150).all()
    assert (out.queries[~tried] == 1).all()
    clean_and_claims = len(labels) + out.cost.forward - int(out.queries.sum())
    assert clean_and_claims < 30 * (1 + 150 * 6 / 10)


def test_a_walk_with_tiny_steps_rests() -> None:
    """One of two walks has converged: only the other one is asked."""
    model, images = oracles.Linear((1, 4, 4), 2), oracles.middle_images(12, (1, 4, 4))
    labels = oracles.predicted(model, images)
    out = oracles.run(oracles.build("boundary", steps=20000), model, images, labels, ())
    queries = out.queries.sort().values
    assert queries[-1] < 20000
    assert queries[0] < queries[-1]
