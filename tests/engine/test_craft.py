"""Image runs: the last iterate or the one of highest loss, for everyone, without side effects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core import rng
from robustbench_defenses.core.view import View
from robustbench_defenses.engine.craft import craft, frozen
from tests.engine import builders, oracles
from tests.engine.builders import Bands, Recorder, Walk, grey

EPS = 0.1


def setting(count: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    model = oracles.convolution(2, 5)
    images = torch.rand(count, 2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    return model, images, oracles.predicted(model, images)


def ce(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(images), labels, reduction="none")


def test_last_is_the_last_iterate() -> None:
    """Literally: BIM's x_{t+1} = clip(x_t + a sign(grad)), four times."""
    model, images, labels = setting()
    points = images.clone()
    for _ in range(4):
        points.requires_grad_()
        loss = F.cross_entropy(model(points), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        moved = points.detach() + 0.05 * gradient.sign()
        points = torch.minimum(torch.maximum(moved, images - EPS), images + EPS).clamp(0, 1)
    attack = oracles.build("bim", steps=4, step_size=0.05)
    torch.testing.assert_close(craft(model, attack, images, labels, EPS), points)


@pytest.mark.parametrize(("name", "eps"), [("pgd_linf", 0.1), ("mim_linf", 0.6)])
def test_best_loss_is_the_best_of_all_iterates(name: str, eps: float) -> None:
    """Large steps overshoot, so the last iterate is not always the best one."""
    model, images, labels = setting(40)
    recorder = Recorder(model)
    attack = oracles.build(name, steps=6, rel_step=0.9)
    last = craft(recorder, attack, images, labels, eps, keep="last")
    points = [*recorder.asked, last]  # x_0 ... x_6
    losses = torch.stack([ce(model, point, labels) for point in points])  # (7, N)
    best = craft(model, attack, images, labels, eps, keep="best_loss")
    torch.testing.assert_close(ce(model, best, labels), losses.amax(0), rtol=1e-9, atol=1e-12)
    assert (losses.amax(0) > losses[-1] + 1e-6).any()


def test_best_loss_compares_all_points_on_one_scale() -> None:
    """With logits scaled in the loss, the last point is measured by the scaled loss too."""
    model, images, labels = setting(40)
    options = {"steps": 6, "rel_step": 0.9, "logit_scale": 0.05}
    attack = oracles.build("pgd_linf", **options)
    recorder = Recorder(model)
    final = craft(recorder, attack, images, labels, EPS)
    with torch.no_grad():
        losses = torch.stack([
            F.cross_entropy(0.05 * model(point), labels, reduction="none")
            for point in [*recorder.asked, final]
        ])  # fmt: skip
    assert (losses.amax(0) > losses[-1]).any()
    best = craft(model, attack, images, labels, EPS, keep="best_loss")
    with torch.no_grad():
        found = F.cross_entropy(0.05 * model(best), labels, reduction="none")
    torch.testing.assert_close(found, losses.amax(0), rtol=1e-9, atol=1e-12)


def test_best_loss_of_a_targeted_run_is_nearest_to_the_target() -> None:
    model, images, labels = setting(40)
    target = (labels + 2) % 5
    attack = oracles.build("pgd_linf", steps=6, rel_step=0.9)
    last = craft(model, attack, images, labels, EPS, target=target)
    best = craft(model, attack, images, labels, EPS, target=target, keep="best_loss")
    assert (ce(model, best, target) <= ce(model, last, target) + 1e-12).all()
    assert (ce(model, best, target) < ce(model, last, target) - 1e-6).any()


def test_nobody_leaves_early() -> None:
    """Broken at the first step or not at all: everyone walks to the end, in one batch."""
    recorder = Recorder(Bands(0.18, 0.6))
    images = grey(0.0, 0.35, 0.9)  # never, soon and already misclassified
    points = craft(recorder, Walk(steps=5), images, torch.zeros(3).long(), 0.05)
    assert recorder.sizes == [3] * 5
    torch.testing.assert_close(points, images + 0.05)


def test_misclassified_images_are_attacked_too() -> None:
    model, images, labels = setting()
    wrong = (labels + 1) % 5
    points = craft(model, oracles.build("pgd_linf", steps=3), images, wrong, EPS)
    assert ((points != images).flatten(1).any(1)).all()


def test_every_row_has_its_own_budget_and_key() -> None:
    model, images, labels = setting()
    attack = oracles.build("pgd_linf", steps=3)
    eps = torch.linspace(0, 0.2, len(labels)).double()
    key = rng.run_keys(7, "x", torch.arange(len(labels)))
    points = craft(model, attack, images, labels, eps, key=key)
    reached = (points - images).flatten(1).abs().amax(1)
    torch.testing.assert_close(reached, eps, rtol=1e-9, atol=1e-12)
    other = craft(model, attack, images, labels, eps, key=key + 1)
    assert not torch.equal(points, other)
    assert torch.equal(points[:1], images[:1])
    assert torch.equal(points, craft(model, attack, images, labels, eps, key=key))


def test_the_model_is_left_as_it_was() -> None:
    """Mode, flags, gradients and buffers; it is asked in the mode it is in."""
    model, images, labels = setting()
    model.train()
    model[5].eval()
    model[0].weight.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    model[1].momentum = 0.0  # so that training mode moves no statistics
    model[1].track_running_stats = True
    modes = [part.training for part in model.modules()]
    flags = [weight.requires_grad for weight in model.parameters()]
    seen = []

    def call(points: Tensor) -> Tensor:
        seen.append([part.training for part in model.modules()])
        return model(points)

    view = View("v", model)
    for subject in (model, view, call):
        craft(subject, oracles.build("pgd_linf", steps=2), images, labels, EPS)
    assert modes == [part.training for part in model.modules()]
    assert seen == [modes] * 2
    assert flags == [weight.requires_grad for weight in model.parameters()]
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight))
    others = [weight for weight in model.parameters() if weight is not model[5].weight]
    assert all(weight.grad is None for weight in others)


def test_weights_ask_for_no_gradient_while_it_runs() -> None:
    model, images, labels = setting()
    seen = []
    model.register_forward_pre_hook(
        lambda *_: seen.append(any(weight.requires_grad for weight in model.parameters()))
    )
    craft(model, oracles.build("pgd_linf", steps=2), images, labels, EPS, keep="best_loss")
    assert seen == [False] * 3


def test_flags_come_back_after_an_exception() -> None:
    model, images, labels = setting()
    model[0].bias.requires_grad_(False)
    flags = [weight.requires_grad for weight in model.parameters()]
    attack = oracles.build("pgd_linf", steps=2)
    handle = model[5].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        craft(model, attack, images, labels, EPS)
    handle.remove()
    assert flags == [weight.requires_grad for weight in model.parameters()]


def test_frozen_shares_weights_between_subjects() -> None:
    model, _, _ = setting()
    with frozen(model, nn.Sequential(model), len):
        assert not any(weight.requires_grad for weight in model.parameters())
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("keep", ["last", "best_loss"])
def test_it_runs_inside_no_grad_and_returns_plain_tensors(keep: str) -> None:
    model, images, labels = setting()
    attack = oracles.build("pgd_linf", steps=2)
    expected = craft(model, attack, images, labels, EPS, keep=keep)  # type: ignore[arg-type]
    with torch.no_grad():
        found = craft(model, attack, images, labels, EPS, keep=keep)  # type: ignore[arg-type]
    assert torch.equal(expected, found)
    assert not found.requires_grad
    assert not images.requires_grad


def test_the_images_are_not_written_to() -> None:
    model, images, labels = setting()
    before = images.clone()
    for name in ("pgd_linf", "fgsm_linf", "mim_l2", "pgd_l1"):
        points = craft(model, oracles.build(name, steps=2), images, labels, EPS)
        points += 1
    assert torch.equal(images, before)


def test_a_subject_without_gradient_leaves_bim_at_the_image() -> None:
    images = oracles.middle_images(3, (1, 3, 3))
    labels = torch.zeros(3).long()
    attack = oracles.build("bim", steps=3)
    for subject in (oracles.Constant(), lambda x: torch.eye(10)[torch.zeros(len(x)).long()]):
        assert torch.equal(craft(subject, attack, images, labels, EPS), images)


def test_autocast_asks_under_bf16_and_computes_the_loss_in_float32() -> None:
    model = oracles.convolution(1, 4).float()
    images = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    labels = oracles.predicted(model, images)
    dtypes = []

    def call(points: Tensor) -> Tensor:
        logits = model(points)
        dtypes.append(logits.dtype)
        return logits

    attack = oracles.build("pgd_linf", steps=2)
    points = craft(call, attack, images, labels, EPS, autocast=True)
    craft(call, attack, images, labels, EPS)
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert points.dtype == torch.float32
    assert float((points - images).abs().max()) == pytest.approx(EPS, rel=1e-5)


def test_attack_specific_rows_reach_the_attack() -> None:
    """Walk goes by `rows.run`: an image run is run 0."""
    images = grey(0.5)
    attack = Walk(steps=1, directions=(-1, 1))
    points = craft(Bands(0.5, 9.0), attack, images, torch.zeros(1).long(), 0.2)
    torch.testing.assert_close(points, images - 0.2)
    assert builders.rows(images, torch.zeros(1).long(), 0.2).run.tolist() == [0]


@pytest.mark.parametrize("most", [1, 5])
@pytest.mark.parametrize("error", [builders.cuda_memory, builders.cpu_memory])
@pytest.mark.parametrize("name", ["pgd_linf", "ddn", "deepfool_l2"])
def test_out_of_memory_changes_no_image(
    name: str, most: int, error: Callable[[], Exception]
) -> None:
    """It is asked in parts from then on: the batch that failed is not tried at every step."""
    model, images, labels = setting()
    attack = oracles.build(name, steps=6)
    whole = craft(model, attack, images, labels, EPS)
    recorder = Recorder(builders.limited(model, most, error))
    parts = craft(recorder, attack, images, labels, EPS)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    assert sum(size > most for size in recorder.sizes) <= 4


def test_memory_that_does_not_suffice_for_one_image_is_told() -> None:
    model, images, labels = setting()
    limited = builders.limited(model, 0, builders.cuda_memory)
    with pytest.raises(torch.OutOfMemoryError):
        craft(limited, oracles.build("pgd_linf", steps=2), images, labels, EPS)
