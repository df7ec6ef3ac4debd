"""The Python functions: evaluate, attack, load, on runs, references and plain modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_defenses as rrd
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.data.source import load
from robustbench_defenses.training.runs import Run, load_run

GIVEN: dict[str, Any] = {"eps": [0.1, 0.2], "n": 30, "threads": 1, "settings": {"steps": 4}}


@pytest.fixture
def network(results: Path) -> nn.Module:
    return rrd.load("last", results=results)


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    split = load("digits", "test")
    return split.images[:30], split.labels[:30]


def test_a_run_a_string_and_a_module_give_the_same_numbers(
    results: Path, network: nn.Module, run_id: str
) -> None:
    run = load_run("last", results)
    assert isinstance(run, Run)
    by_run = rrd.evaluate(run, "pgd", results=results, **GIVEN)
    by_name = rrd.evaluate(run_id, "pgd", results=results, **GIVEN)
    by_module = rrd.evaluate(network, "pgd", dataset="digits", results=results, **GIVEN)
    assert by_run == by_name
    assert by_run.curve == by_module.curve
    assert by_run.subject.weights == by_module.subject.weights
    assert (by_run.subject.kind, by_module.subject.kind) == ("run", "file")
    assert by_module.subject.name == "LeNetNetwork"
    assert len(list(results.glob("evals/*/*.json"))) == 2


def test_the_result_gives_curve_auc_and_frame(results: Path) -> None:
    result = rrd.evaluate("last", "pgd", results=results, **GIVEN)
    assert [point.eps for point in result.curve] == [0.1, 0.2]
    assert 0 <= result.curve[1].robust_accuracy <= result.curve[0].robust_accuracy <= 1
    assert result.auc is not None
    frame = result.frame()
    assert list(frame["eps"]) == [0.1, 0.2]
    assert list(frame["robust_accuracy"]) == [point.robust_accuracy for point in result.curve]
    assert rrd.evaluate("last", results=results, **{**GIVEN, "eps": 0.1}).auc is None


def test_a_module_needs_a_data_set(network: nn.Module, results: Path) -> None:
    with pytest.raises(UserError, match="does not say which data set") as told:
        rrd.evaluate(network, results=results, **GIVEN)
    assert told.value.hint is not None
    with pytest.raises(UserError, match="was trained on digits, not on mnist"):
        rrd.evaluate("last", dataset="mnist", results=results, **GIVEN)


class Noisy(nn.Module):
    """A network that behaves otherwise in training: dropout, and BatchNorm that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)
        self.layer = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layer(self.drop(self.norm(images).flatten(1)))
        return result


def noisy() -> Noisy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Noisy()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_module_in_training_mode_is_left_as_it_was(frozen: bool, results: Path) -> None:
    module = noisy().train()
    module.drop.eval()
    module.layer.weight.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    random = torch.random.get_rng_state()
    result = rrd.evaluate(module, dataset="digits", results=results, **GIVEN)
    adversarial = rrd.attack(
        module, load("digits", "test").images[:5], load("digits", "test").labels[:5], eps=0.1
    )
    assert modes == [part.training for part in module.modules()]
    assert module.layer.weight.requires_grad is not frozen
    assert all(weight.grad is None for weight in module.parameters())
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not adversarial.images.requires_grad
    (found,) = [d for d in result.diagnostics if d.id == "D13"]
    assert "was given in training mode" in found.sentence
    assert not found.fired
    again = rrd.evaluate(module.eval(), dataset="digits", results=results, fresh=True, **GIVEN)
    assert again.curve == result.curve
    (found,) = [d for d in again.diagnostics if d.id == "D13"]
    assert "training mode" not in found.sentence


def test_batch_statistics_are_told(results: Path) -> None:
    """A network that normalises by its batch: an image's logits hang on its mates."""
    net = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten(), noisy().layer)
    result = rrd.evaluate(net, "fgsm", dataset="digits", results=results, eps=0.1, n=30)
    (found,) = [d for d in result.diagnostics if d.id == "D13"]
    assert found.fired
    assert found.severity == "error"


class RuledOut(nn.Module):
    """A network that never says 9."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits.masked_fill(torch.eye(10, dtype=torch.bool)[9], -torch.inf)


def test_classes_may_be_ruled_out(results: Path, network: nn.Module) -> None:
    result = rrd.evaluate(RuledOut(network), "fgsm", dataset="digits", results=results, **{
        **GIVEN, "settings": {}
    })  # fmt: skip
    (found,) = [d for d in result.diagnostics if d.id == "D13"]
    assert found.value is not None
    assert not found.fired
    assert result.curve[0].robust_accuracy < result.clean_accuracy


def test_attack_returns_images_and_their_verdicts(
    network: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    made = rrd.attack(network, images, labels, "pgd", eps=0.2, steps=6)
    assert made.images.shape == images.shape
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    length = distance(made.images, images, "linf")
    assert torch.equal(made.distance, length)
    assert (length <= largest_allowed(torch.tensor(0.2, dtype=torch.float64))).all()
    with torch.no_grad():
        assert torch.equal(made.prediction, network(made.images).argmax(1))
        clean = network(images).argmax(1)
    assert torch.equal(made.broken, made.prediction != labels)
    assert made.broken.sum() > (clean != labels).sum()
    again = rrd.attack(network, images, labels, "pgd", eps=0.2, steps=6)
    assert torch.equal(again.images, made.images)
    other = rrd.attack(network, images, labels, "pgd", eps=0.2, steps=6, seed=1)
    assert not torch.equal(other.images, made.images)


def test_attack_in_other_norms_and_towards_targets(
    network: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    for name, norm in (("pgd", "l2"), ("pgd_l2", None)):
        made = rrd.attack(network, images, labels, name, eps=1.0, norm=norm)
        assert torch.equal(made.distance, distance(made.images, images, "l2"))
        assert made.distance.max() > 0.5
    target = (labels + 1) % 10
    made = rrd.attack(network, images, labels, "pgd", eps=0.4, target=target)
    assert torch.equal(made.broken, made.prediction == target)
    assert made.broken.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(30, 1, 8, 8, dtype=torch.uint8)}, "are not float"),
        ({"images": torch.zeros(0, 1, 8, 8)}, "are not float"),
        ({"images": torch.full((30, 1, 8, 8), 1.5)}, "must lie in"),
        ({"images": torch.full((30, 1, 8, 8), torch.nan)}, "must lie in"),
        ({"labels": torch.zeros(29, dtype=torch.int64)}, "labels of shape"),
        ({"labels": torch.zeros(30)}, "labels of type torch.float32"),
        ({"labels": torch.full((30,), 10)}, "gives 10 logits, but labels go from 10 to 10"),
        ({"labels": torch.full((30,), -1)}, "labels go from -1 to -1"),
        ({"target": torch.full((30,), 12)}, "target go from 12 to 12"),
        ({"eps": -0.1}, "is negative"),
        ({"eps": 8.0}, "larger than the pixel range"),
        ({"eps": float("nan")}, "not a finite number"),
        ({"name": "pdg"}, "unknown attack"),
        ({"norm": "l7"}, "l7"),
        ({"keep": "first"}, "unknown keep"),
        ({"steps": 0}, "steps"),
        ({"stepz": 3}, "no parameter 'stepz'"),
        ({"model": lambda images: images.new_full((len(images), 10), torch.nan)}, "gives NaN"),
        ({"model": lambda images: (images, images)}, "returns tuple"),
    ],
)
def test_attack_refuses(
    changes: dict[str, Any], message: str, network: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    named: dict[str, Any] = {
        "model": network, "images": digits[0], "labels": digits[1], "name": "pgd", "eps": 0.1,
        **changes,
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        rrd.attack(**named)


def test_load_gives_the_deployed_module(results: Path, network: nn.Module, run_id: str) -> None:
    split = load("digits", "test")
    with torch.no_grad():
        accuracy = (network(split.images).argmax(1) == split.labels).double().mean()
    result = rrd.evaluate("last", "fgsm", eps=0.1, n=360, results=results)
    assert result.clean_accuracy == float(accuracy)
    assert accuracy > 0.6
    assert not network.training
    for name in (run_id, f"{run_id}@last", str(results / "runs" / run_id)):
        assert isinstance(rrd.load(name, results=results), nn.Module)
    with pytest.raises(UserError, match="no checkpoint 'step-3'"):
        rrd.load(f"{run_id}@step-3", results=results)


def test_images_of_a_view_are_judged_by_the_deployed(results: Path) -> None:
    """`attack_images` says of every image what the deployed subject says."""
    from robustbench_defenses.evaluation.images import attack_images

    made = attack_images("last", "pgd", eps=0.2, n=25, results_dir=results, subset="random:1")
    assert made.index.tolist() != list(range(25))
    arrays = made.arrays()
    assert {len(array) for array in arrays.values()} == {25}
    assert np.array_equal(arrays["broken"], (arrays["prediction_after"] != arrays["label"]) | (
        arrays["prediction_before"] != arrays["label"]
    ))  # fmt: skip
    middle = attack_images("last", "fgsm", n=5, results_dir=results)
    grid = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4]
    assert middle.eps == grid[3]
