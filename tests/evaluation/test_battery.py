"""Each check of `--diagnose` fires on the defect that it is for, with that reason, else not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.core.norms import distance
from robustbench_defenses.core.view import View
from robustbench_defenses.engine.twin import search_twin
from robustbench_defenses.evaluation.battery import CHECKS, Probe, battery_passes, diagnose
from robustbench_defenses.evaluation.battery.gradients import far_out
from robustbench_defenses.evaluation.battery.twins import Twins
from robustbench_defenses.evaluation.diagnose import prepare
from robustbench_defenses.evaluation.schema import Diagnostic
from tests.attacks import nets

from . import defects
from .defects import Linear, Loop, Wrapped, asked, flipped, level, noisy, probe, rounding, same

Make = Callable[..., Probe]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return defects.write_examples(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make(data: str, tmp_path: Path) -> Make:
    (tmp_path / "attacks.py").write_text(defects.ATTACKS)

    def made(subject: nn.Module, **question: Any) -> Probe:
        attack = question.pop("attack", "pgd")
        if attack[0].isupper():
            attack = f"{tmp_path / 'attacks.py'}:{attack}"
        return probe(subject, data, tmp_path, attack=attack, **question)

    return made


# No defect: no flag.


def test_nothing_fires_on_a_linear_subject(make: Make) -> None:
    """All checks run or say why not; accuracy is the closed form, exactly."""
    about = make(Linear())
    found = diagnose(about)
    assert [one.id for one in found] == [f"D{number}" for number in range(1, 33)]
    assert {one.id: level(one) for one in found if level(one) not in ("ok", "skipped")} == {
        "D29": "info"  # 100 images
    }
    reasons = {one.id: one.skipped for one in found if one.skipped is not None}
    assert set(reasons) == {"D10", "D25", "D28", "D30", "D32"}
    assert all(reasons.values())
    net = Linear()
    images, labels = (part[:100] for part in defects.examples())
    with torch.no_grad():
        logits = net(images)
        gap = logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]
        slope = (net.weight[labels] - net.weight[1 - labels]).abs().sum(1)
    exact = float((gap / slope > 0.02).double().mean())
    assert 0.1 < exact < 0.9
    assert float(about.base.mean()) == exact
    assert about.left == exact


def test_the_cost_is_declared_and_kept(make: Make) -> None:
    """Every check skips or keeps to its card; 100 of at most 200 images here."""
    about = make(Wrapped(rounding(4), same))  # nearly everything survives: nobody leaves early
    diagnose(about)
    forward, backward = battery_passes()
    assert 0.3 * forward * 100 < about.cost.forward <= forward * 200
    assert 0.3 * backward * 100 < about.cost.backward <= backward * 100
    assert forward < 1300
    assert backward < 700


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_other_norms(make: Make, norm: str) -> None:
    found = diagnose(make(Linear(), attack=f"pgd_{norm}", eps=0.05 if norm == "l2" else 0.1, n=60))
    assert [one.id for one in found if level(one) == "error"] == []
    assert sum(one.skipped is None for one in found) > 20


# Gradients that mislead.


def test_saturated_logits(make: Make) -> None:
    about = make(Wrapped(same, lambda z: 1e4 * z))
    found = asked("D7", about)
    assert level(found) == "error"
    assert "rescaled logits" in found.sentence
    assert level(asked("D12", about)) == "warning"  # the margin loss does not saturate
    assert level(asked("D7", make(Linear()))) == "ok"


def test_rounded_inputs(make: Make) -> None:
    about = make(Wrapped(rounding(10), same))
    for id in ("D1", "D18", "D24"):
        assert level(asked(id, about)) == "error", id
    assert "exactly 0 for 100 %" in asked("D18", about).sentence
    assert asked("D1", about).images != []
    assert level(asked("D7", about)) == "ok"  # the logits are not to blame


def test_flipped_gradients(make: Make) -> None:
    about = make(Wrapped(flipped, same))
    for id in ("D9", "D18", "D24"):
        assert level(asked(id, about)) == "error", id
    assert level(asked("D9", make(Linear()))) == "ok"


def test_rough_outputs(make: Make) -> None:
    """A wave of a fiftieth, 500 to a pixel's range, that the gradient follows."""
    rough = Wrapped(lambda x: x + 0.02 * torch.sin(3000 * x), same)
    found = asked("D19", make(rough))
    assert level(found) in ("warning", "error")
    assert level(asked("D19", make(Linear()))) == "ok"


def test_images_of_a_twin(make: Make) -> None:
    """Images made on the sound network break the one that hides its gradient."""
    about = make(Wrapped(rounding(10), same))
    assert "no other network" in str(asked("D10", about).skipped)
    about.twins = _Given([("twin", Linear())])
    found = asked("D10", about)
    assert level(found) == "error"
    assert "twin" in found.sentence
    sound = make(Linear())
    sound.twins = _Given([("twin", Linear())])
    assert level(asked("D10", sound)) == "ok"


class _Given(Twins):
    """Twins that need no results folder."""

    def __init__(self, networks: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.networks = networks

    def sources(self) -> list[tuple[str, nn.Module]]:
        return self.networks

    def undefended(self) -> tuple[str, nn.Module] | None:
        return self.networks[0]


# The attack.


def test_an_attack_that_tires(make: Make) -> None:
    about = make(Linear(), attack="Tires")
    found = asked("D2", about)
    assert level(found) == "error"
    assert "lower" in found.sentence or "more standing" in found.sentence
    assert level(asked("D2", make(Linear()))) == "ok"


def test_five_steps_of_a_hundredth(make: Make) -> None:
    weak = {"": {"steps": 5, "rel_step": 0.01, "random_start": False}}
    about = make(Linear(), settings=weak)
    assert level(asked("D2", about)) == "warning"
    found = {one.id: one for one in diagnose(about)}
    assert level(found["D20"]) == "error"
    assert level(found["D5"]) == "error"
    assert "0.05 of eps" not in found["D20"].sentence
    assert "can travel only" in found["D20"].sentence


def test_an_attack_that_fails_in_large_balls(make: Make) -> None:
    found = asked("D3", make(Linear(), attack="Timid"))
    assert level(found) == "error"
    assert len(found.images) > 0
    assert level(asked("D3", make(Linear()))) == "ok"


def test_an_attack_that_returns_its_last_point(make: Make) -> None:
    about = make(Linear(), attack="LastOnly")
    assert about.base.all()
    found = asked("D21", about)
    assert level(found) == "error"
    assert found.value == pytest.approx(1 - float(make(Linear()).base.mean()))
    assert level(asked("D27", about)) == "ok"
    assert level(asked("D21", make(Linear()))) == "ok"


def test_an_attack_that_projects_onto_twice_the_ball(make: Make) -> None:
    found = {one.id: one for one in diagnose(make(Linear(), attack="Overshoot"))}
    assert level(found["D16"]) == "error"
    assert level(found["D21"]) == "ok"  # what lies outside does not count as passed either


def test_an_attack_that_was_stopped_early(make: Make) -> None:
    slow = {"": {"steps": 20, "rel_step": 0.02, "random_start": False}}
    assert level(asked("D22", make(Linear(), settings=slow))) == "warning"
    assert level(asked("D22", make(Linear()))) == "ok"
    few = {"": {"steps": 5}}
    assert "10 steps" in str(asked("D22", make(Linear(), settings=few)).skipped)


def test_early_stops_on_an_adversarially_trained_network(tmp_path: Path) -> None:
    """The loss of its survivors still rises a little under an honest attack, too little to matter;
    an attack whose steps are too small for the budget is told, whatever its loss."""
    images, labels = nets.digits("test")
    np.savez(tmp_path / "set.npz", images=images.numpy(), labels=labels.numpy(), classes=10)
    net = nets.trained(epochs=24, eps=0.1)

    def found(**settings: object) -> tuple[Probe, Diagnostic]:
        about = prepare(
            net, ["pgd"], defects.CPU, dataset=f"npz:{tmp_path / 'set.npz'}", n=200, eps=0.15,
            settings={"": settings}, results_dir=tmp_path,
        )  # fmt: skip
        return about, asked("D22", about)

    honest, one = found(steps=40)
    assert 0.3 < honest.base.mean() < 0.9
    assert level(one) == "ok"
    path, base = honest.suspect[1], torch.from_numpy(honest.base)
    late, last = (path.losses[base, :end].amax(1) for end in (30, 40))
    rise = (last - late) / (last - path.losses[base, :40].amin(1))
    assert (rise > 0.05).float().mean() > 0.05, "by the rise of the loss alone it would be told"
    twice, _ = found(steps=80)
    assert honest.base.mean() - twice.base.mean() < 0.02

    for loss in ("ce", "margin"):
        weak, one = found(steps=20, rel_step=0.02, random_start=False, loss=loss)
        assert level(one) == "warning"
        assert weak.base.mean() > honest.base.mean() + 0.1
        assert set(one.images) <= set(weak.index[torch.from_numpy(weak.base)].tolist())
    _, one = found(steps=40, rel_step=0.005, random_start=False)
    assert level(one) == "warning"


def test_a_nearest_point_search_that_is_stronger(make: Make) -> None:
    about = make(Linear(), settings={"": {"steps": 3, "rel_step": 0.1}})
    found = asked("D23", about)
    assert level(found) == "warning"
    assert found.sentence.startswith("fmn breaks")
    assert level(asked("D23", make(Linear()))) == "ok"


def test_restarts_on_a_rugged_subject(make: Make) -> None:
    """A short run from a random start succeeds or not by chance."""
    short = {"": {"steps": 1, "rel_step": 0.5}}
    assert level(asked("D11", make(Linear(), settings=short))) == "error"
    assert level(asked("D11", make(Linear()))) == "ok"


def test_an_attack_that_fails_on_an_undefended_network(make: Make) -> None:
    about = make(Linear())
    about.examples = dataclasses.replace(
        about.examples, info=dataclasses.replace(about.examples.info, name="digits")
    )
    assert "no undefended run" in str(asked("D25", _without(about)).skipped)
    about.twins = _Given([("nt", Linear())])
    assert level(asked("D25", about)) == "ok"
    weak = make(Linear(), settings={"": {"steps": 1, "rel_step": 0.01, "random_start": False}})
    weak.examples, weak.twins = about.examples, about.twins
    assert level(asked("D25", weak)) == "error"


def _without(about: Probe) -> Probe:
    about.twins = Twins()
    return about


def test_a_stand_in_that_is_too_far(make: Make) -> None:
    """What is attacked is not what is deployed."""
    about = make(Linear())
    other = Linear()
    with torch.no_grad():
        other.weight.mul_(-1)
        other.bias.mul_(-1)
    about.twin = search_twin(View("soft", Wrapped(same, lambda z: z, other)), about.images, "fp32")
    found = asked("D27", about)
    assert level(found) == "warning"
    assert "not in the verdict" in found.sentence


# The measurement.


def test_dropout_left_on(make: Make) -> None:
    torch.manual_seed(0)
    about = make(Wrapped(lambda x: F.dropout(x, 0.1, training=True), same))
    found = {one.id: one for one in diagnose(about)}
    for id in ("D13", "D14", "D31"):
        assert level(found[id]) == "error", id


def test_noisy_inputs(make: Make) -> None:
    torch.manual_seed(0)
    assert level(asked("D14", make(Wrapped(noisy, same)))) == "error"
    declared = Wrapped(noisy, same)
    declared.random, declared.draws = True, 5
    about = make(declared)
    assert level(asked("D14", about)) == "info"  # it says so, and attacks average
    for id in ("D15", "D18", "D19"):
        assert "see D14" in str(asked(id, about).skipped)
    assert level(asked("D14", make(Linear()))) == "ok"


class Moody(Linear):
    """Small batches get another answer."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits if len(images) > 7 else logits.flip(1)


def test_verdicts_that_hang_on_the_batch(make: Make) -> None:
    assert level(asked("D15", make(Moody(), eps=0.1))) == "error"
    found = asked("D15", make(Linear(), eps=0.1))
    assert level(found) == "ok"
    assert "rounding to 8 bits" in found.sentence
    assert "broke no image" in str(asked("D15", make(Linear(), eps=1e-6)).skipped)


def test_a_loop_in_the_forward_pass(make: Make) -> None:
    found = asked("D26", make(Loop()))
    assert level(found) == "warning"
    assert found.value == 1
    assert level(asked("D26", make(Linear()))) == "ok"
    assert torch.autograd.grad.__module__ == "torch.autograd"


def test_another_answer_to_the_same_question(make: Make) -> None:
    torch.manual_seed(0)
    assert level(asked("D31", make(Wrapped(noisy, same)))) == "error"
    assert level(asked("D31", make(Linear()))) == "ok"


def test_probabilities(make: Make) -> None:
    found = {one.id: one for one in diagnose(make(Wrapped(same, lambda z: z.softmax(1)), n=30))}
    assert level(found["D17"]) == "error"


# The attack under suspicion.


def test_a_parameter_that_the_attack_lacks(make: Make) -> None:
    """APGD has no margin loss: PGD tries it; it has a logit scale."""
    about = make(Linear(), attack="apgd_ce", n=40)
    assert about.short == "apgd_ce"
    assert asked("D12", about).skipped is None
    assert asked("D7", about).skipped is None
    assert level(asked("D1", about)) == "ok"


def test_attacks_without_steps_leave_the_suspicion_to_pgd(make: Make) -> None:
    for name in ("fgsm", "square", "ddn", "autoattack"):
        assert make(Linear(), attack=name, n=10).short == "pgd"
    assert make(Linear(), attack="ddn", n=10).norm == "l2"


def test_what_any_attack_breaks_is_broken(make: Make) -> None:
    about = make(Wrapped(same, lambda z: 1e4 * z))
    assert about.base.mean() > make(Linear()).base.mean()
    asked("D7", about)
    assert about.left == pytest.approx(float(make(Linear()).base.mean()))
    assert np.isfinite(about.distance).any()
    assert {one.card.id for one in CHECKS} >= {"D1", "D2", "D3", "D7"}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_far_points_use_the_whole_budget_and_stay_in_the_box(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(20, 3, 6, 6, generator=generator)
    images[:10] = images[:10].round()  # black and white
    noise = torch.rand(images.shape, generator=generator)
    eps = {"linf": 0.1, "l2": 1.5, "l1": 6.0}[norm]
    delta = far_out(images, noise, eps, norm)
    assert torch.allclose(distance(images + delta, images, norm), torch.tensor(eps).double())
    if norm != "linf":
        assert ((images + delta).clamp(0, 1) - images - delta).abs().max() < 1e-6
        # As few pixels as the budget buys: all but the last one are at a bound.
        moved = (delta != 0).flatten(1).sum(1)
        at_bound = ((images + delta).flatten(1) - 0.5).abs() > 0.5 - 1e-6
        assert ((delta.flatten(1) != 0) & at_bound).sum(1).ge(moved - 1).all()
