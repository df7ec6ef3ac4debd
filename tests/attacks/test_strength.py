"""Strength beside foolbox, at equal networks, images, budgets and steps, and in bf16."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.norms import distance
from robustbench_defenses.engine import search
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.evaluation import metrics
from tests.attacks import nets
from tests.engine import oracles

EPS = {"linf": 0.12, "l2": 0.8, "l1": 3.0}
STEPS = 40


def robust(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, eps: float, precision: str = "fp32",
    **settings: object,
) -> float:  # fmt: skip
    """Our robust accuracy."""
    attack = oracles.build(name, steps=STEPS, **settings)
    out = oracles.run(attack, net, images, labels, (eps,), precision=precision, name=name)
    return float(torch.isinf(out.distance).double().mean())


def foolbox_points(
    kind: str, net: nn.Module, images: Tensor, labels: Tensor, eps: float, random_start: bool
) -> Tensor:
    """What foolbox returns with our steps and step sizes: its last iterates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its imports
        import foolbox
    make = getattr(foolbox.attacks, kind)
    attack = make(rel_stepsize=2.5 / STEPS, steps=STEPS, random_start=random_start)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, points, _ = attack(
            foolbox.PyTorchModel(net, bounds=(0, 1)), images, labels, epsilons=eps
        )
    net.zero_grad(set_to_none=True)  # foolbox leaves gradients in the weights
    return points.detach()


def surviving(net: nn.Module, images: Tensor, points: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        right = (net(images).argmax(1) == labels) & (net(points).argmax(1) == labels)
    return float(right.double().mean())


@pytest.mark.parametrize("training", [0.0, 0.1])
@pytest.mark.parametrize(("norm", "kind"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_at_least_as_strong_as_foolbox(norm: str, kind: str, training: float) -> None:
    """Natural and adversarially trained, equal steps from the image, in float32 and in bf16."""
    images, labels = nets.digits("test")
    net, eps = nets.trained(eps=training), EPS[norm]
    points = foolbox_points(kind, net, images, labels, eps, random_start=False)
    theirs = surviving(net, images, points, labels)
    assert 0.05 < theirs < 0.95  # the budget breaks some and leaves some
    for precision in ("fp32", "bf16"):
        ours = robust(f"pgd_{norm}", net, images, labels, eps, precision, random_start=False)
        assert ours <= theirs + 0.005


@pytest.mark.parametrize(("norm", "kind"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_at_least_as_strong_as_foolbox_from_random_starts(norm: str, kind: str) -> None:
    """The mean of four seeds each: one start alone moves the number by half a point."""
    images, labels = nets.digits("test")
    images, labels = images.repeat(4, 1, 1, 1), labels.repeat(4)
    net, eps = nets.trained(), EPS[norm]
    points = foolbox_points(kind, net, images, labels, eps, random_start=True)
    theirs = surviving(net, images, points, labels)
    assert robust(f"pgd_{norm}", net, images, labels, eps) <= theirs + 0.005


@pytest.mark.parametrize(
    "name",
    [
        "pgd_l1", "apgd_ce_l1", "apgd_dlr_l1", "apgd_t_l1", "feature_match_l1", "fab_t_l1",
        "fmn_l1",
    ],
)  # fmt: skip
def test_l1_attacks_beat_scaled_gradients(name: str) -> None:
    """foolbox steps along g / ||g||_1 and rescales instead of projecting onto the L1 ball."""
    images, labels = nets.digits("test")
    net, eps = nets.trained(), EPS["l1"]
    points = foolbox_points("L1PGD", net, images, labels, eps, random_start=False)
    theirs = surviving(net, images, points, labels)
    attack = oracles.build(name, steps=STEPS, targets=3)
    out = oracles.run(attack, net, images, labels, (eps,))
    assert metrics.robust_accuracy(out.distance.numpy(), eps) < theirs - 0.1


def bright_images(colours: int, count: int) -> tuple[nn.Module, Tensor]:
    """A network and images of values above a half, nearest to its boundaries."""
    images, _ = nets.digits("train")
    net = nets.trained()
    if colours > 1:
        grey = nn.Conv2d(3, 1, 1, bias=False)
        grey.weight.data = torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1)
        net = nn.Sequential(grey, net).eval()
        images = images.expand(-1, 3, -1, -1) * torch.tensor([1.0, 0.8, 0.6]).view(1, 3, 1, 1)
    bright = 0.5 + images / 2
    with torch.no_grad():
        top = net(bright).topk(2, dim=1).values
    return net, bright[(top[:, 0] - top[:, 1]).argsort()[:count]]


@pytest.mark.parametrize("eps", [0.0025, 0.005, 2 / 255])
@pytest.mark.parametrize("colours", [1, 3])
def test_tiny_budgets_survive_bf16(eps: float, colours: int) -> None:
    """Bright images, where bf16 cannot tell steps of 1/255 apart."""
    net, near = bright_images(colours, 200)
    labels = oracles.predicted(net, near)
    exact = robust("pgd_linf", net, near, labels, eps)
    rounded = robust("pgd_linf", net, near, labels, eps, "bf16")
    assert 0 < exact < 1
    assert rounded <= exact + 1.5 / 200


@pytest.mark.parametrize(("norm", "kind"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_images_transfer_as_often_as_foolboxes(norm: str, kind: str) -> None:
    """Image runs return last iterates: first-broken ones would hardly transfer."""
    images, labels = nets.digits("test")
    source, other, eps = nets.trained(seed=0), nets.trained(seed=1), EPS[norm]
    attack = oracles.build(f"pgd_{norm}", steps=STEPS, random_start=False)
    ours = surviving(other, images, craft(source, attack, images, labels, eps), labels)
    points = foolbox_points(kind, source, images, labels, eps, random_start=False)
    theirs = surviving(other, images, points, labels)
    assert ours == pytest.approx(theirs, abs=0.01)
    assert theirs < surviving(other, images, images, labels) - 0.1


def nearest_to_the_boundary(net: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    """The digits whose two largest logits are closest, labelled as predicted."""
    images = torch.cat([nets.digits("test")[0], nets.digits("train")[0]])
    with torch.no_grad():
        top = net(images).topk(2, dim=1).values
    near = images[(top[:, 0] - top[:, 1]).argsort()[:count]]
    return near, oracles.predicted(net, near)


@pytest.mark.parametrize(
    ("name", "eps"),
    [("apgd_ce_linf", 0.02), ("apgd_ce_l2", 0.1), ("apgd_t_linf", 0.02), ("square_linf", 0.03)],
)
def test_bf16_breaks_as_many(name: str, eps: float) -> None:
    """Rescue (APGD) and float32 near the boundary (Square) make up for what bf16 cannot see."""
    net = nets.trained()
    images, labels = nearest_to_the_boundary(net, 200)
    attack = oracles.build(name, targets=3 if name == "apgd_t_linf" else 0, n_queries=300)
    broken = [
        int(torch.isfinite(out.distance).sum())
        for out in (
            oracles.run(attack, net, images, labels, (eps,), precision=precision, name=name)
            for precision in ("fp32", "bf16")
        )
    ]
    assert 40 < broken[0] < 180
    assert broken[1] >= broken[0] - 2


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("ddn", 0.0), ("ddn", 0.1), ("fmn_linf", 0.0), ("fmn_l2", 0.0), ("fmn_l1", 0.0),
        ("deepfool_l2", 0.0), ("deepfool_l2", 0.1), ("deepfool_linf", 0.0),
        ("fab_t_linf", 0.0), ("fab_t_l2", 0.0), ("fab_t_l1", 0.0), ("cw", 0.0),
    ],
)  # fmt: skip
def test_bf16_finds_points_as_near(name: str, training: float) -> None:
    """FAB and DeepFool in bf16 alone end at 1.1 times the distance or fail: they end in float32."""
    net = nets.trained(eps=training)
    images = nets.digits("test")[0][:80]
    labels = oracles.predicted(net, images)
    few = {
        "targets": 3,
        "search_steps": 4,
        "steps": 60 if name in ("cw", "fab_t_l2", "fab_t_l1") else 100,
    }
    attack = oracles.build(name, **few)
    exact, coarse = (
        oracles.run(attack, net, images, labels, (), precision=precision, name=name).distance
        for precision in ("fp32", "bf16")
    )
    both = torch.isfinite(exact) & torch.isfinite(coarse)
    assert torch.isfinite(coarse).sum() >= torch.isfinite(exact).sum() >= 72
    assert (coarse / exact)[both].mean() <= 1.02


@pytest.mark.parametrize("training", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("ddn", "DDNAttack"), ("fmn_linf", "LInfFMNAttack"), ("deepfool_l2", "L2DeepFoolAttack")],
)
def test_minimum_norms_of_foolbox(name: str, kind: str, training: float) -> None:
    """Image by image, the mean ratio of distances; found at least as often."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    net = nets.trained(eps=training)
    images, labels = nets.digits("test")
    right = (oracles.predicted(net, images) == labels).nonzero()[:100, 0]
    images, labels = images[right], labels[right]
    attack = oracles.build(name, steps=50)
    found = oracles.run(attack, net, images, labels, (), name=name).distance
    _, points, success = getattr(foolbox.attacks, kind)(steps=50)(
        foolbox.PyTorchModel(net, bounds=(0, 1)), images, labels, epsilons=None
    )
    net.zero_grad(set_to_none=True)
    theirs = distance(points.detach(), images, attack.norm).masked_fill(~success, torch.inf)
    both = torch.isfinite(found) & torch.isfinite(theirs)
    assert torch.isfinite(found).sum() >= torch.isfinite(theirs).sum() >= 90
    assert (found / theirs)[both].mean() <= 1.02


@pytest.mark.parametrize(("training", "steps"), [(0.0, 100), (0.2, 100), (0.2, 20)])
def test_cw_comes_as_near_as_ddn(training: float, steps: int) -> None:
    """Nine rounds break every image, black and white pixels and robust networks included, at the
    distances of DDN in as many steps. In 20 of them the authors' rate cannot go that far."""
    images, labels = nets.digits("test")
    net = nets.trained(eps=training)
    right = (oracles.predicted(net, images) == labels).nonzero()[:60, 0]
    images, labels = images[right], labels[right]
    assert ((images == 0) | (images == 1)).float().mean() > 0.3
    cw, ddn = (
        oracles.run(oracles.build(name, steps=steps), net, images, labels, ()).distance
        for name in ("cw", "ddn")
    )
    assert torch.isfinite(cw).double().mean() >= 0.99
    both = torch.isfinite(cw) & torch.isfinite(ddn)
    assert both.double().mean() >= 0.99
    assert (cw / ddn)[both].mean() <= 1.1


def coarse(net: nn.Module, offset: float) -> nn.Module:
    """The same function, but that its last features pass `offset` higher, where bf16 tells fewer
    numbers apart: rounding as of a deep network (32: a hundredth of the logits' range)."""
    net = copy.deepcopy(net)
    assert isinstance(net, nn.Sequential)
    last = net[-1]
    raised = nn.Linear(last.in_features, last.in_features)
    with torch.no_grad():
        raised.weight.copy_(torch.eye(last.in_features))
        raised.bias.fill_(offset)
        last.bias -= offset * last.weight.sum(1)
    return nn.Sequential(*net[:-1], raised, last).eval()


@functools.cache
def at_distance(norm: str, wanted: float, count: int) -> tuple[Tensor, Tensor]:
    """The digits that FMN breaks at a distance nearest to `wanted`, labelled as predicted."""
    images = torch.cat([nets.digits("test")[0], nets.digits("train")[0]])
    labels = oracles.predicted(nets.trained(), images)
    found = oracles.run(
        oracles.build(f"fmn_{norm}", steps=30), nets.trained(), images, labels, ()
    ).distance
    chosen = (found - wanted).abs().argsort()[:count]
    return images[chosen], labels[chosen]


def test_rescue_finds_what_bf16_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """APGD where the budget just suffices or just fails: a run that bf16 leads astray is repeated
    in float32, and most of what was lost is found."""
    lost, usual = {True: 0, False: 0}, search.RESCUE_MARGIN
    for name, eps in [("apgd_ce_linf", 0.1), ("apgd_ce_l2", 0.6), ("apgd_dlr_l2", 0.6)]:
        attack = oracles.build(name)
        images, labels = at_distance(attack.norm, eps, 150)
        net = coarse(nets.trained(), 128)
        found = []
        for precision, margin in (("fp32", usual), ("bf16", usual), ("bf16", -torch.inf)):
            monkeypatch.setattr(search, "RESCUE_MARGIN", margin)
            out = oracles.run(attack, net, images, labels, (eps,), precision=precision, name=name)
            found.append(torch.isfinite(out.distance))
        exact, rescued, alone = found
        lost[True] += int((exact & ~rescued).sum())
        lost[False] += int((exact & ~alone).sum())
        assert (rescued | ~alone).all()
    assert lost[False] >= 10
    assert lost[True] <= 0.7 * lost[False]


def test_square_sees_small_improvements_in_bf16() -> None:
    net = coarse(nets.trained(), 32)
    images, labels = at_distance("linf", 0.08, 150)
    attack = oracles.build("square_linf", n_queries=300)
    exact, found = (
        torch.isfinite(oracles.run(attack, net, images, labels, (0.1,), precision=p).distance)
        for p in ("fp32", "bf16")
    )
    assert exact.sum() > 120
    assert (exact & ~found).sum() <= 8


@pytest.mark.parametrize(
    "name",
    [
        "ddn", "fmn_linf", "fmn_l2", "fmn_l1", "deepfool_l2", "deepfool_linf", "fab_t_linf",
        "fab_t_l2", "fab_t_l1", "cw", "boundary", "brendel_bethge_linf", "brendel_bethge_l2",
        "brendel_bethge_l1",
    ],
)  # fmt: skip
def test_coarse_bf16_finds_points_as_near(name: str) -> None:
    """Found as often, and the mean ratio: single trajectories differ either way."""
    net = coarse(nets.trained(), 64 if name == "boundary" else 32)
    images = nets.digits("test")[0][: 60 if name == "boundary" else 40]
    labels = oracles.predicted(net, images)
    steps = 300 if name == "boundary" else 60
    attack = oracles.build(name, steps=steps, targets=3, search_steps=4)
    exact, found = (
        oracles.run(attack, net, images, labels, (), precision=p, name=name).distance
        for p in ("fp32", "bf16")
    )
    assert torch.isfinite(exact).all()
    assert torch.isfinite(found).all()
    # In L1 the walk of Brendel and Bethge jumps from corner to corner.
    assert (found / exact).mean() <= (1.2 if name == "brendel_bethge_l1" else 1.04)


@pytest.mark.parametrize(
    ("name", "limit"), [("fmn_linf", 1.15), ("fmn_l2", 1.15), ("fab_t_linf", 1.03)]
)
def test_tiny_distances_on_bright_colours_survive_bf16(name: str, limit: float) -> None:
    """A tenth of what bf16 tells apart near white; no search is repeated in float32."""
    net, near = bright_images(3, 60)
    labels = oracles.predicted(net, near)
    attack = oracles.build(name, targets=3, steps=60)
    exact, found = (
        oracles.run(attack, net, near, labels, (), precision=p, name=name).distance
        for p in ("fp32", "bf16")
    )
    assert exact.median() < (0.02 if attack.norm == "l2" else 0.002)
    assert torch.isfinite(found).sum() >= torch.isfinite(exact).sum() >= 58
    assert (found / exact)[torch.isfinite(found)].mean() <= limit
