"""Answers of reference libraries: judged by our verdict, side effects kept in, equal parameters."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.core.view import View
from robustbench_defenses.data.source import describe
from robustbench_defenses.engine.outcome import Outcome
from robustbench_defenses.engine.search import Block
from robustbench_defenses.evaluation import question as asking
from robustbench_defenses.evaluation.backends import BackendSearch
from robustbench_defenses.evaluation.evaluate import Answer
from robustbench_defenses.evaluation.libraries import Call, Work, knows
from robustbench_defenses.evaluation.run import evaluate
from tests.engine import oracles

SHAPE = (1, 8, 8)
EPS = {"linf": 0.05, "l2": 0.4, "l1": 3.0}
# Few steps: what is tested here is not how strong an attack is.
FEW: dict[str, dict[str, dict[str, Any]]] = {
    "foolbox": {
        **{name: {} for name in ("fgsm_linf", "fgsm_l2", "fgsm_l1")},
        **{name: {"steps": 5} for name in ("bim_linf", "bim_l2", "mim_linf", "mim_l2")},
        **{name: {"steps": 5} for name in ("pgd_linf", "pgd_l2", "pgd_l1")},
        **{name: {"steps": 30} for name in ("ddn", "fmn_linf", "fmn_l2", "fmn_l1")},
        **{name: {} for name in ("deepfool_linf", "deepfool_l2")},
        "cw": {"steps": 30, "search_steps": 3, "const": 1.0, "form": "tanh"},
        "boundary": {"steps": 20},
    },
    "autoattack": {
        **{f"{name}_{norm}": {"steps": 5} for name in ("apgd_ce", "apgd_dlr") for norm in EPS},
        **{f"apgd_t_{norm}": {"steps": 5, "targets": 2} for norm in EPS},
        **{f"fab_t_{norm}": {"steps": 10, "targets": 2} for norm in EPS},
        **{f"square_{norm}": {"n_queries": 100} for norm in EPS},
        "autoattack_linf": {"steps": 5, "n_queries": 20},
        "autoattack_l2": {"steps": 5, "n_queries": 20, "version": "plus"},
        "autoattack_l1": {"steps": 5, "n_queries": 20, "version": "rand"},
    },
}
EVERY = [(backend, name) for backend, names in FEW.items() for name in names]


class Net(nn.Module):
    """A small network that behaves otherwise in training: dropout, and BatchNorm that counts."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5),
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 10),
            )  # fmt: skip
            head = self.layers[6]
            assert isinstance(head, nn.Linear)
            head.weight.data *= 8

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def setting(count: int = 12) -> tuple[Net, Tensor, Tensor]:
    net = Net().eval()
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return net, images, oracles.predicted(net, images)


def search(
    question: asking.AttackQuestion, net: nn.Module, images: Tensor, labels: Tensor, **named: Any
) -> Outcome:
    """The library's answer to `question` about `net`."""
    target = named.pop("target", None)
    block = Block(
        images=images,
        labels=labels,
        target=torch.full_like(labels, -1) if target is None else target,
        numbers=torch.arange(len(labels)),
        grid=question.budgets,
        sweep=question.sweep,
    )
    call = named.pop("call", question.call)
    assert call is not None
    return BackendSearch(
        call=call,
        library=question.backend,
        minimum=question.minimum,
        norm=question.norm,
        view=View("deployed", net),
        deployed=named.pop("deployed", net),
        block=block,
        targeted=question.targeted,
        attack_name=question.name,
        **named,
    ).run()


def ask(backend: str, name: str, **named: Any) -> asking.AttackQuestion:
    settings = named.pop("settings", FEW[backend].get(name, {}))
    norm = next((norm for norm in EPS if name.endswith(f"_{norm}")), "l2")
    given = {"eps": EPS[norm], **named}
    return asking.ask(name, describe("digits"), backend=backend, settings=settings, **given)


@pytest.mark.parametrize(("backend", "name"), EVERY)
def test_what_counts_passed_our_verdict_and_nothing_leaks(backend: str, name: str) -> None:
    net, images, labels = setting()
    labels[0] = (labels[0] + 1) % 10  # a misclassified clean image
    net.train()
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(3), random.random(), np.random.rand(3)
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    trace = sys.gettrace()
    question = ask(backend, name)
    out = search(question, net, images, labels, keep_points=True)

    assert sys.gettrace() is trace
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]
    assert np.array_equal(np.random.rand(3), expected[2])
    assert all(part.training for part in net.modules())
    assert all(weight.requires_grad for weight in net.parameters())
    ones = [torch.ones_like(weight) for weight in net.parameters()]
    torch.testing.assert_close([weight.grad for weight in net.parameters()], ones)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())

    assert out.points is not None
    found = torch.isfinite(out.distance)
    assert out.distance[0] == 0
    assert out.broken[:, 0].all()
    assert int(found.sum()) > 1, "the attack finds something here"
    verdict = oracles.predicted(net.eval(), out.points)
    assert bool((verdict[found] != labels[found]).all())
    assert out.points.min() >= 0
    assert out.points.max() <= 1
    length = distance(out.points, images, question.norm)
    torch.testing.assert_close(length[found], out.distance[found])
    if not question.minimum:
        allowed = largest_allowed(torch.tensor(EPS[question.norm], dtype=torch.float64))
        assert bool((out.distance[found] <= allowed).all())
        assert torch.equal(out.broken[0], found)
    assert out.cost.forward > len(images)
    assert int(out.queries.sum()) > 0


class Lying:
    """A library that returns what it likes."""

    def __init__(self, *candidates: Tensor) -> None:
        self.candidates = candidates

    def __call__(self, model: nn.Module, work: Work) -> Iterator[Tensor]:
        yield from self.candidates


def test_only_what_the_deployed_subject_misclassifies_counts() -> None:
    """One image each: in order honest, outside the ball, outside the box, NaN, still right."""
    net = oracles.Linear(SHAPE, 2).float()
    images = torch.full((5, *SHAPE), 0.5)
    labels = oracles.predicted(net, images)
    way = (net.weight[1 - labels[0]] - net.weight[labels[0]]).sign().view(SHAPE).float()
    points = images + 0.1 * way
    assert bool((oracles.predicted(net, points) != labels).all())
    points[1] = images[1] + 0.2 * way
    points[2, 0, 0, 0] = -0.01
    points[3, 0, 0, 0] = torch.nan
    points[4] = images[4]
    call = Call((("lie", Lying(points)),))
    question = ask("foolbox", "fgsm_linf", eps=0.1)
    out = search(question, net, images, labels, call=call)
    assert torch.isfinite(out.distance).tolist() == [True, False, False, False, False]
    assert out.invalid_claims == 3
    # The view may say what it likes: the deployed subject decides.
    wrong = search(question, net, images, labels, call=call, deployed=lambda x: net(x) * 0 + 1)
    assert wrong.clean_prediction.tolist() == [0] * 5
    assert not torch.isfinite(wrong.distance[labels == 0]).any()


@pytest.mark.parametrize("name", ["ddn", "fmn_linf", "deepfool_l2", "deepfool_linf", "fab_t_l2"])
def test_nearest_points_of_a_linear_network(name: str) -> None:
    backend = "autoattack" if name.startswith("fab") else "foolbox"
    settings = {"ddn": {"steps": 100}, "fmn_linf": {"steps": 100}, "fab_t_l2": {"steps": 20}}
    question = ask(backend, name, settings=settings.get(name, {}))
    net = oracles.Linear(SHAPE, 10).float()
    images = oracles.middle_images(20, SHAPE).float()
    labels = oracles.predicted(net, images)
    out = search(question, net, images, labels)
    true = net.distances(images, labels, question.norm)
    assert bool((out.distance >= true * (1 - 1e-4)).all())
    assert bool((out.distance <= true * 1.06).all())


def _robust() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that nothing breaks at small budgets."""
    net = oracles.Linear(SHAPE, 6).float()
    net.bias.data[0] += 100.0
    images = oracles.middle_images(6, SHAPE).float()
    return net, images, oracles.predicted(net, images)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("name", ["apgd_ce_linf", "apgd_dlr_linf", "square_linf"])
def test_restarts_of_the_library_are_those_asked_for(name: str, restarts: int) -> None:
    """pyautoattack's own default would be five."""
    budget = {"n_queries": 20} if name.startswith("square") else {"steps": 7}
    question = ask("autoattack", name, settings={**budget, "restarts": restarts}, eps=1e-4)
    net, images, labels = _robust()
    out = search(question, net, images, labels)
    per_run = 20 if name.startswith("square") else 8
    assert not torch.isfinite(out.distance).any()
    # Beside the runs: clean images, and the verdict on what came back.
    assert restarts * per_run < out.cost.forward / len(images) < (restarts + 1) * per_run
    if not name.startswith("square"):
        assert out.cost.backward == restarts * per_run * len(images)


def test_restarts_of_foolbox_are_spent_on_what_stands() -> None:
    question = ask("foolbox", "pgd_linf", settings={"steps": 5, "restarts": 3}, eps=1e-4)
    net, images, labels = _robust()
    assert search(question, net, images, labels).cost.backward == 3 * 5 * len(images)
    broken = ask("foolbox", "pgd_linf", settings={"steps": 5, "restarts": 3}, eps=0.5)
    net, images, labels = setting()
    assert search(broken, net, images, labels).cost.backward < 3 * 5 * len(images)


def test_autoattack_tells_what_each_member_left() -> None:
    question = ask("autoattack", "autoattack_linf", eps=[0.01, 0.03, 0.06])
    net, images, labels = setting(40)
    out = search(question, net, images, labels)
    assert [one.name for one in out.members] == ["apgd_ce", "apgd_t", "fab_t", "square"]
    nearest = torch.stack([one.distance for one in out.members]).amin(0)
    broken = torch.isfinite(out.distance) & (out.distance > 0)
    assert bool(broken.any())
    torch.testing.assert_close(nearest[broken], out.distance[broken])
    assert sum(one.cost.backward for one in out.members) == out.cost.backward


def test_the_boundary_attack_may_begin_at_images_of_other_classes() -> None:
    net, images, labels = setting(12)
    settings = {"steps": 20, "init": "images"}
    question = ask("foolbox", "boundary", settings=settings)
    out = search(question, net, images, labels, keep_points=True)
    assert out.points is not None
    found = torch.isfinite(out.distance)
    assert bool(found.any())
    others = torch.cdist(images.flatten(1), images.flatten(1)).double()
    others[labels[:, None] == labels[None]] = torch.inf
    nearest = others.amin(1)
    assert bool((out.distance[found] <= nearest[found] + 1e-5).all())
    # Whoever has no image of another class beside it has no start, and stops nobody.
    alone = search(question, net, images[:1], labels[:1])
    assert not torch.isfinite(alone.distance).any()


def test_an_independent_sweep_attacks_every_budget_afresh() -> None:
    settings = {"steps": 3}
    net, images, labels = setting(30)
    named: dict[str, Any] = {"settings": settings, "eps": [0.02, 0.05, 0.1]}
    table = search(ask("foolbox", "pgd_linf", sweep="independent", **named), net, images, labels)
    envelope = search(ask("foolbox", "pgd_linf", **named), net, images, labels)
    assert table.cost.backward == 3 * 3 * len(images)
    assert envelope.cost.backward < table.cost.backward
    assert bool((envelope.broken[:-1] <= envelope.broken[1:]).all())
    assert bool((envelope.broken[0] == table.broken[0]).all())


def test_targets_are_what_the_library_aims_at() -> None:
    net, images, labels = setting(20)
    with torch.no_grad():
        target = net(images).topk(2).indices[:, 1]
    question = ask("foolbox", "pgd_linf", targeted=True, settings={"steps": 20}, eps=0.5)
    out = search(question, net, images, labels, target=target, keep_points=True)
    found = torch.isfinite(out.distance)
    assert bool(found.any())
    assert out.points is not None
    assert torch.equal(oracles.predicted(net, out.points)[found], target[found])


@pytest.mark.parametrize(
    ("backend", "name", "named", "said"),
    [
        ("foolbox", "square", {}, "foolbox has no attack that does what square does"),
        ("autoattack", "pgd", {}, "pyautoattack has no attack that does what pgd does"),
        ("foolbox", "pgd", {"settings": {"loss": "margin"}}, "takes only loss=ce"),
        ("foolbox", "pgd", {"settings": {"logit_scale": 0.1}}, "takes only logit_scale=1.0"),
        ("foolbox", "fgsm", {"settings": {"rel_step": 1.25}}, "takes only rel_step=1.0"),
        ("foolbox", "fgsm", {"targeted": True}, "FGSM takes no target class"),
        ("foolbox", "ddn", {"settings": {"loss": "dlr"}}, "takes only loss=ce"),
        ("autoattack", "apgd_t", {"settings": {"loss": "ce"}}, "targeted APGD has no loss ce"),
        ("autoattack", "apgd_ce", {"settings": {"loss": "margin"}}, "APGD has no loss margin"),
        ("autoattack", "square", {"targeted": True}, "pyautoattack takes no target class"),
        ("elsewhere", "pgd", {}, "unknown backend 'elsewhere'"),
    ],
)
def test_what_a_library_cannot_do_is_said(
    backend: str, name: str, named: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as told:
        asking.ask(name, describe("digits"), eps=0.1, backend=backend, **named)
    assert "\n" not in told.value.message


def test_brendel_bethge_needs_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="Brendel-Bethge attack needs numba") as told:
        ask("foolbox", "brendel_bethge_l2")
    assert told.value.hint == "pip install numba"
    assert not knows("foolbox", "brendel_bethge")
    assert knows("foolbox", "boundary")
    assert not knows("autoattack", "boundary")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_brendel_bethge_where_numba_is_there(norm: str) -> None:
    pytest.importorskip("numba")
    net, images, labels = setting(6)
    question = ask("foolbox", f"brendel_bethge_{norm}", settings={"steps": 10})
    out = search(question, net, images, labels, keep_points=True)
    found = torch.isfinite(out.distance)
    assert out.points is not None
    assert bool(found.any())
    assert bool((oracles.predicted(net, out.points) != labels)[found].all())


class Noisy(nn.Module):
    """Answers at random, and says so."""

    random, draws, aggregation = True, 4, "vote"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images + 0.02 * torch.randn_like(images))
        return logits


def test_a_random_subject_gets_the_version_for_it() -> None:
    net, images, labels = setting(8)
    few = {"steps": 3, "n_queries": 10}
    question = ask("autoattack", "autoattack_linf", settings=few, eps=[0.03, 0.06])
    state = torch.random.get_rng_state()
    out = search(question, Noisy(net), images, labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [one.name for one in out.members] == ["apgd_ce", "apgd_dlr"]
    assert out.broken_draws is not None
    assert out.broken_draws.shape == (2, 8)
    again = search(question, Noisy(net), images, labels)
    assert torch.equal(out.distance, again.distance)
    plain = search(question, net, images, labels)
    assert [one.name for one in plain.members] == ["apgd_ce", "apgd_t", "fab_t", "square"]


def test_dlr_needs_classes() -> None:
    info = dataclasses.replace(describe("digits"), classes=3)
    with pytest.raises(UserError, match="targeted DLR loss needs 4 classes or more, not 3"):
        asking.ask("apgd_t", info, eps=0.1, backend="autoattack")
    asking.ask("apgd_dlr", info, eps=0.1, backend="autoattack")


@pytest.mark.parametrize("name", ["apgd_t", "autoattack"])
def test_fewer_classes_than_targets(name: str) -> None:
    """The library alone ends in an error for fewer than ten classes."""
    info = dataclasses.replace(describe("digits"), classes=6)
    few = {"steps": 4} | ({"n_queries": 10} if name == "autoattack" else {})
    question = asking.ask(name, info, eps=1e-4, backend="autoattack", settings=few)
    net, images, labels = _robust()
    assert not torch.isfinite(search(question, net, images, labels).distance).any()


def test_a_failing_library_and_a_failing_network_are_told_apart() -> None:
    net, images, labels = setting()
    question = ask("foolbox", "pgd_linf")

    def breaks(model: nn.Module, work: Work) -> Iterator[Tensor]:
        raise IndexError("index 9 is out of bounds")
        yield

    with pytest.raises(UserError, match="foolbox raises IndexError in pgd_linf: index 9"):
        search(question, net, images, labels, call=Call((("x", breaks),)))
    moved = Spoilt(net, images)
    with pytest.raises(UserError, match="the subject gives NaN"):
        search(question, moved, images, labels)


class Spoilt(nn.Module):
    """Gives NaN for all but the clean images."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.net, self.images = net, images

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        clean = len(images) == len(self.images) and torch.equal(images, self.images)
        return logits if clean else logits * torch.nan


def test_memory_that_does_not_suffice_halves_the_batch() -> None:
    net, images, labels = setting(16)
    sizes = []

    class Narrow(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            if points.requires_grad or not torch.equal(points[:1], images[:1]):
                sizes.append(len(points))
                if len(points) > 5:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            result: Tensor = net(points)
            return result

    question = ask("foolbox", "bim_linf")
    out = search(question, Narrow(), images, labels, deployed=net)
    assert max(sizes[1:]) <= 8
    assert torch.isfinite(out.distance).any()


Ask = Callable[..., Answer]


@pytest.fixture
def stored(results: Path) -> Ask:
    """An answer about 30 examples and the shared run."""

    def run(attack: str, **named: Any) -> Answer:
        given = {"eps": [0.1, 0.2], "n": 30, "threads": 1, "results_dir": results, **named}
        (answer,) = evaluate("last", [attack], **given)
        return answer

    return run


def test_a_library_s_answer_is_a_result_of_its_own(stored: Ask) -> None:
    few = {"": {"steps": 4}}
    native = stored("pgd", settings=few)
    other = stored("pgd", settings=few, backend="foolbox")
    assert native.stored.path != other.stored.path
    assert native.stored.result.attack.backend == "native"
    assert native.stored.result.attack.remark is None
    attack = other.stored.result.attack
    assert attack.backend == "foolbox"
    assert attack.remark is not None
    assert attack.remark.startswith("foolbox 3.")
    assert "last iterate" in attack.remark
    assert stored("pgd", settings=few, backend="foolbox").cached
    assert not stored("pgd", settings=few, backend="foolbox", batch_size=7).cached
    record = other.stored.record()
    fell = (record.distance > 0) & np.isfinite(record.distance)
    assert fell.any()
    assert (record.queries[fell] > 1).all()
    checked = {d.id: d for d in other.stored.result.diagnostics}
    assert checked["D16"].value == 0
    assert checked["D6"].skipped is not None


def test_distances_are_comparable_with_our_own(stored: Ask) -> None:
    """DDN is the same algorithm in both: nearly the same distances, image by image."""
    few = {"": {"steps": 60}}
    ours = stored("ddn", settings=few, eps=None).stored.record()
    theirs = stored("ddn", settings=few, eps=None, backend="foolbox").stored.record()
    np.testing.assert_array_equal(ours.clean_prediction, theirs.clean_prediction)
    hit = np.isfinite(ours.distance) & np.isfinite(theirs.distance) & ours.clean_right
    assert hit.sum() > 20
    ratio = ours.distance[hit] / theirs.distance[hit]
    assert 0.97 < np.median(ratio) < 1.02


def test_a_clipped_sweep_of_a_library(stored: Ask) -> None:
    result = stored("deepfool", sweep="clipped", eps=[0.5, 1.0, 5.0], backend="foolbox").stored
    assert result.result.sweep == "clipped"
    rows = result.record()
    assert rows.broken is not None
    left = [point.robust_accuracy for point in result.result.curve]
    assert left[0] > left[-1]


def test_libraries_are_imported_when_they_answer() -> None:
    said = (
        "import sys; import robustbench_defenses.evaluation.run; "
        "print([n for n in ('foolbox', 'pyautoattack') if n in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
