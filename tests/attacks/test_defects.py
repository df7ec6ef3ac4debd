"""Defects known from other attack libraries.

Each test holds one way in which a published implementation gave wrong results, changed what it was
lent, or wasted its budget.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.craft import craft
from tests.attacks import nets
from tests.engine import oracles

GRADIENT = [
    name for name in oracles.attacks() if name.split("_")[0] in ("fgsm", "bim", "mim", "pgd")
]
EPS = {"linf": 0.12, "l2": 0.8, "l1": 3.0}
STEPS = 40


def test_all_gradient_attacks_are_here() -> None:
    assert {"fgsm", "fgsm_l2", "bim", "mim", "pgd", "pgd_l2", "pgd_l1"} <= set(GRADIENT)


def digits_setting(count: int = 100) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = nets.digits("test")
    return nets.trained(), images[:count], labels[:count]


# Wrong results.


@pytest.mark.parametrize("name", GRADIENT)
def test_failures_are_not_reported_as_successes(name: str) -> None:
    """A subject that nothing can move: success is the clean error, and no image gets worse."""
    images = oracles.middle_images(12, (1, 3, 3))
    labels = torch.zeros(12).long()
    labels[::4] = 3  # clean errors
    attack = oracles.build(name)
    out = oracles.run(attack, oracles.Constant(), images, labels, (EPS[attack.norm],))
    assert torch.isfinite(out.distance).tolist() == (labels == 3).tolist()
    assert (out.distance[::4] == 0).all()
    points = craft(oracles.Constant(), attack, images, labels, EPS[attack.norm])
    limit = largest_allowed(torch.tensor(EPS[attack.norm]).double())
    assert (distance(points, images, attack.norm) <= limit).all()


@pytest.mark.parametrize("name", GRADIENT)
def test_pixels_at_exactly_0_and_1_can_move(name: str) -> None:
    net, images, labels = digits_setting()
    at_bound = (images == 0) | (images == 1)
    assert at_bound.float().mean() > 0.3
    attack = oracles.build(name)
    points = craft(net, attack, images, labels, EPS[attack.norm])
    moved = ((points != images) & at_bound).flatten(1).any(1)
    # L1 steps change few pixels.
    assert moved.float().mean() > (0.3 if attack.norm == "l1" else 0.999)


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eps_zero_returns_the_image_itself(name: str, dtype: torch.dtype) -> None:
    """0/0 in a projection gives NaN, which reads as success."""
    net, images, labels = digits_setting(20)
    net = net.to(dtype)
    try:
        points = craft(net, oracles.build(name), images.to(dtype), labels, 0.0)
    finally:
        net.to(torch.float32)
    assert torch.equal(points, images.to(dtype))


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e12])
def test_nan_is_never_returned(name: str, scale: float) -> None:
    """Flat, vanishing and saturated losses, and an image whose gradient is zero among others."""
    net, images, labels = digits_setting(20)
    images = images.clone()
    images[3] = 0
    points = craft(lambda x: scale * net(x), oracles.build(name), images, labels, 0.3)
    assert torch.isfinite(points).all()
    assert ((points >= 0) & (points <= 1)).all()


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


@pytest.mark.parametrize("name", GRADIENT)
def test_batch_mates_change_nothing(name: str) -> None:
    """Alone, among others, among extreme others: the same image (to float tolerance)."""
    net, images, labels = digits_setting(16)
    net, images = net.double(), images.double()
    attack = oracles.build(name, steps=10)
    eps = EPS[attack.norm]
    try:
        together = craft(net, attack, images, labels, eps)
        wild = torch.where(torch.arange(16).view(-1, 1, 1, 1) == 0, images, images.round())
        among = craft(net, attack, wild, labels, eps)
        alone = craft(net, attack, images[:1], labels[:1], eps)
    finally:
        net.float()
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(among[:1], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2"])
def test_one_hopeless_image_spoils_nothing(name: str) -> None:
    """An image that nothing can move among fifty: forty-nine results and one that is open."""
    net, images, labels = digits_setting(50)
    base = images[7].clone()
    attack = oracles.build(name, steps=20)
    eps = 4 * EPS[attack.norm]
    with torch.no_grad():
        labels = net(images).argmax(1)

    def stubborn(points: Tensor) -> Tensor:
        logits = net(points)
        near = (points - base).flatten(1).norm(dim=1) < 2.5
        fixed = 10 * F.one_hot(labels[7:8], 10).to(logits)
        return torch.where(near[:, None], fixed, logits)

    apart = (images - base).flatten(1).norm(dim=1) > 5.5
    apart[7] = True
    out = oracles.run(attack, net, images[apart], labels[apart], (eps,))
    assert torch.isfinite(out.distance).all()
    out = oracles.run(attack, stubborn, images[apart], labels[apart], (eps,))
    open_ones = torch.isinf(out.distance)
    assert int(open_ones.sum()) == 1
    assert bool(open_ones[int(apart[:7].sum())])


UNKNOWN = 10  # a class that no image has


def talking(net: nn.Module) -> Logits:
    """`net` with one more class, which it never answers."""
    return lambda points: F.pad(net(points), (0, 1), value=-1000.0)


@pytest.mark.parametrize("name", ["boundary", "brendel_bethge_linf"])
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


@pytest.mark.parametrize("name", GRADIENT)
def test_curves_fall(name: str) -> None:
    net, images, labels = digits_setting()
    attack = oracles.build(name, steps=3)
    grid = tuple(EPS[attack.norm] * k / 4 for k in range(1, 9))
    out = oracles.run(attack, net, images, labels, grid)
    accuracy = [float((out.distance > eps * (1 + 1e-6)).float().mean()) for eps in grid]
    assert accuracy == sorted(accuracy, reverse=True)
    assert (out.distance[torch.isfinite(out.distance)] <= grid[-1] * (1 + 1e-6) + 1e-7).all()


def test_nan_logits_are_told_not_counted() -> None:
    net, images, labels = digits_setting(20)

    def sick(points: Tensor) -> Tensor:
        logits = net(points)
        return torch.where(points.flatten(1).mean(1, keepdim=True) > 0.33, torch.nan, logits)

    with pytest.raises(UserError, match="NaN for test image"):
        rrd.attack(sick, images, labels, "pgd", eps=0.1)
    with pytest.raises(UserError, match="NaN for test image"):
        oracles.run(oracles.build("pgd_linf", steps=5), sick, images, labels, (0.1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 255 * x, r"\[0, 1\]"),
        (lambda x: 2 * x - 1, r"\[0, 1\]"),
        (lambda x: x.masked_fill(x == x.max(), torch.nan), r"\[0, 1\]"),
        (lambda x: (255 * x).to(torch.uint8), "not float"),
    ],
)
def test_the_range_of_images_is_checked(change: object, message: str) -> None:
    net, images, labels = digits_setting(8)
    with pytest.raises(UserError, match=message):
        rrd.attack(net, change(images), labels, "pgd", eps=0.1)  # type: ignore[operator]


def test_files_of_the_wrong_range_are_refused(tmp_path: object) -> None:
    net, images, labels = digits_setting(8)
    for name, wrong in (("levels", 255 * images), ("centred", images - 0.5)):
        np.savez(f"{tmp_path}/{name}.npz", images=wrong.numpy(), labels=labels.numpy())
        with pytest.raises(UserError, match="not 0 to 1"):
            rrd.evaluate(
                net, "pgd", dataset=f"npz:{tmp_path}/{name}.npz", eps=0.1, results=f"{tmp_path}/r"
            )


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_no_special_case(name: str, steps: int) -> None:
    net, images, labels = digits_setting(10)
    attack = oracles.build(name, steps=steps)
    out = oracles.run(attack, net, images, labels, (EPS[attack.norm],))
    assert int(out.queries.max()) <= 1 + steps
    assert out.cost.backward > 0


# Side effects.


def test_evaluation_leaves_the_subject_as_it_was(tmp_path: object) -> None:
    """Mode of each part, buffers, gradients, flags, and three global random states."""
    _, images, labels = digits_setting(30)
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
    np.savez(f"{tmp_path}/d.npz", images=images.numpy(), labels=labels.numpy(), classes=10)
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

    for name in ("fgsm", "pgd", "mim"):
        options = {
            "dataset": f"npz:{tmp_path}/d.npz",
            "eps": [0.1, 0.2],
            "results": f"{tmp_path}/r",
        }
        rrd.evaluate(net, name, threads=torch.get_num_threads(), **options)
        same()
        rrd.attack(net, images, labels, name, eps=0.1)
        same()
    bias = net[6].bias.data.clone()
    net[6].bias.data[0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        rrd.attack(net, images, labels, "pgd", eps=0.1)
    net[6].bias.data.copy_(bias)
    same()


# Waste.


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
