"""The loop: what it leaves behind, what it chooses, when it stops."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.progress import Silent
from robustbench_defenses.core.registry import entries
from robustbench_defenses.data.source import load
from robustbench_defenses.training import weights
from robustbench_defenses.training.runs import Run
from robustbench_defenses.training.trainer import DivergedError
from robustbench_defenses.training.validation import Validation, overfitting

from .conftest import small

DEFENSES = [entry.name for entry in entries("defense")]


def log_of(run: Run, event: str = "epoch") -> list[dict[str, Any]]:
    text = (run.folder / "log.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]


@pytest.mark.parametrize("defense", DEFENSES)
def test_every_defense_trains_at_smoke(defense: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    run = small(tmp_path, defense, settings={"model.width": 8, "model.hidden": 64})
    assert torch.equal(torch.random.get_rng_state(), before)
    deployed = run.deployed()
    images = torch.rand(4, 1, 8, 8, requires_grad=True)
    logits = deployed(images)
    assert logits.shape == (4, 10)
    assert torch.equal(deployed(images), logits)  # deterministic, unless it says otherwise
    for view in run.views():
        (gradient,) = torch.autograd.grad(view.logits(images).square().sum(), images)
        assert (gradient.flatten(1).abs().sum(1) > 0).all()
    epochs = sum(phase["epochs"] for phase in run.info.phases)
    assert run.info.epochs_done == epochs == len(log_of(run))
    tensors, _ = weights.load(run.weights_path())
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize("defense", ["nt", "pgd_at", "aicr"])
def test_the_smoke_preset_learns(defense: str, tmp_path: Path) -> None:
    from robustbench_defenses.training.train import train

    run = train(defense, "digits", preset="smoke", results_dir=tmp_path, threads=1)
    test = load("digits", "test")
    right = run.deployed()(test.images).argmax(1) == test.labels
    assert right.double().mean() > 0.5  # chance: 0.1


def test_a_finished_run_comes_back_at_once(tmp_path: Path) -> None:
    class Never(Silent):
        def start(self, task: str, total: int) -> None:
            raise AssertionError(task)

    run = small(tmp_path)
    assert small(tmp_path, progress=Never()) == run
    times = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    small(tmp_path, progress=Never())
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == times
    again = small(tmp_path, fresh=True)
    assert again.info.started > run.info.started
    assert again.info.weights == run.info.weights


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    first, second = (small(tmp_path, seed=seed, epochs=1) for seed in (0, 1))
    assert first.id != second.id
    assert first.info.weights["last"] != second.info.weights["last"]
    assert small(tmp_path / "b", epochs=1).info.weights == first.info.weights


def test_checkpoints_every_so_many_steps(tmp_path: Path) -> None:
    run = small(tmp_path, settings={"save_every": 5})
    assert run.checkpoints() == ["best", "last", "step-5", "step-10"]
    digests = {run.weights_digest(name) for name in ("step-5", "step-10", "last")}
    assert len(digests) == 3
    assert weights.load(run.weights_path("step-5"))[1]["step"] == "5"


def test_the_log_has_a_line_per_epoch_and_one_early(tmp_path: Path) -> None:
    run = small(tmp_path, "aicr", epochs=6, settings={"projector_width": 16})
    lines = log_of(run)
    assert [line["epoch"] for line in lines] == list(range(1, 9))
    assert [line["phase"] for line in lines] == ["pretrain"] * 2 + ["aicr"] * 6
    assert {"cross_entropy", "attract", "repulse", "variance"} <= set(lines[-1])
    assert {"margin", "feature_norm.fc1", "nearest_centre.fc1"} <= set(lines[-1])
    (early,) = log_of(run, "early")  # the pretraining has only 8 steps
    assert early["phase"] == "aicr"
    assert early["step"] == 2 * 4 + 20


def test_the_logged_loss_is_the_mean_over_the_epoch(tmp_path: Path) -> None:
    # At rate 0 the network stays as it was initialised, so the mean can be computed afterwards.
    run = small(tmp_path, epochs=1, settings={"learning_rate": 0.0}, precision="fp32")
    from robustbench_defenses.data.loader import split_validation

    training, _ = split_validation(load("digits", "train"), 60, 0)
    with torch.no_grad():
        logits = run.deployed()(training.images[:256])
    expected = nn.functional.cross_entropy(logits, training.labels[:256]).item()
    assert log_of(run)[0]["cross_entropy"] == pytest.approx(expected, rel=1e-4)


def test_the_best_checkpoint_is_judged_on_held_out_training_images(tmp_path: Path) -> None:
    from robustbench_defenses.data.loader import split_validation

    run = small(tmp_path, epochs=8)
    lines = log_of(run)
    best = max(lines, key=lambda line: (line["validation_accuracy"], line["epoch"]))
    assert run.info.best is not None
    assert run.info.best["epoch"] == best["epoch"]
    assert weights.load(run.weights_path("best"))[1]["epoch"] == str(best["epoch"])
    _, held = split_validation(load("digits", "train"), 60, 0)
    right = run.deployed("best")(held.images).argmax(1) == held.labels
    assert right.double().mean().item() == pytest.approx(best["validation_accuracy"], abs=1e-5)


def test_adversarial_training_is_chosen_by_robust_accuracy(tmp_path: Path) -> None:
    run = small(tmp_path, "pgd_at", epochs=4)
    assert run.info.best is not None
    assert run.info.best["metric"] == "robust_validation_accuracy"
    values = [line["robust_validation_accuracy"] for line in log_of(run)]
    assert run.info.best["value"] == pytest.approx(max(values), abs=1e-5)
    for line in log_of(run):
        assert line["robust_validation_accuracy"] <= line["validation_accuracy"]


def test_without_validation_the_last_is_the_best(tmp_path: Path) -> None:
    run = small(tmp_path, settings={"validation": 0})
    assert run.info.best is None
    assert run.info.validation_images == 0
    assert run.info.weights["best"] == run.info.weights["last"]


FRAGILE = '''
"""A defense whose loss becomes NaN in its second epoch."""

from dataclasses import dataclass
from robustbench_defenses.defenses.base import Phase, optimiser
from torch import nn

CARD = {"object": "Fragile", "version": 1}

@dataclass(frozen=True)
class Fragile:
    dropout: float = 0.0
    nan_at: int = 6

    def parts(self, setup):
        return {"network": nn.Sequential(setup.model(), nn.Dropout(self.dropout))}

    def phases(self, setup, parts):
        def loss(batch):
            value = setup.forward(parts["network"], batch.images).square().mean()
            factor = float("nan") if batch.step >= self.nan_at else 1.0
            return {"fine": value, "broken": value * factor}
        made = (optimiser(parts["network"].parameters(), setup.settings),)
        yield Phase("train", setup.settings.epochs, made, loss)

    def deployed(self, parts, options):
        return parts["network"]
'''


def test_a_loss_that_is_not_finite_stops_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "fragile.py"
    file.write_text(FRAGILE)
    with pytest.raises(DivergedError, match=r"epoch 2, step 3.*: broken is not finite"):
        small(tmp_path, f"{file}:Fragile")
    (folder,) = (tmp_path / "runs").iterdir()
    said = json.loads((folder / "run.json").read_text())
    assert said["status"] == "diverged"
    assert said["warnings"][0]["check"] == "diverged"
    assert log_of(Run(folder, None), "diverged")[0]["terms"] == ["broken"]  # type: ignore[arg-type]
    assert not (folder / "resume").exists()
    with pytest.raises(DivergedError):  # asked again, it tries again
        small(tmp_path, f"{file}:Fragile")


def test_networks_with_random_layers_repeat(tmp_path: Path) -> None:
    file = tmp_path / "fragile.py"
    file.write_text(FRAGILE)
    settings = {"dropout": 0.5, "nan_at": 1000}
    torch.manual_seed(1)
    first = small(tmp_path / "a", f"{file}:Fragile", settings=settings)
    torch.manual_seed(2)
    second = small(tmp_path / "b", f"{file}:Fragile", settings=settings)
    assert first.info.weights == second.info.weights
    plain = small(tmp_path / "c", f"{file}:Fragile", settings={**settings, "dropout": 0.0})
    assert plain.info.weights != first.info.weights


@dataclass
class Case:
    clean: float
    robust: float
    one_step: float
    before: float
    last: bool
    fires: bool


@pytest.mark.parametrize(
    "case",
    [
        Case(0.99, 0.30, 0.95, 0.80, False, True),  # fell 50 points, one step stands
        Case(0.99, 0.75, 0.95, 0.80, False, False),  # a gap, but it did not fall
        Case(0.99, 0.30, 0.35, 0.80, False, False),  # fell, but one step fell with it
        Case(0.99, 0.01, 0.90, 0.01, False, False),  # never robust: only the end tells
        Case(0.99, 0.01, 0.90, 0.01, True, True),
        Case(0.99, 0.60, 0.90, 0.60, True, False),
    ],
)
def test_catastrophic_overfitting(case: Case) -> None:
    found = Validation(case.clean, case.robust, case.one_step)
    sentence = overfitting(found, case.before, case.last)
    assert (sentence is not None) == case.fires
    assert overfitting(Validation(case.clean), 0.0, True) is None


def test_warnings_reach_run_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_defenses.training import trainer

    states = iter(
        [Validation(0.9, 0.8, 0.85), Validation(0.9, 0.1, 0.9), Validation(0.9, 0.8, 0.85)]
    )
    monkeypatch.setattr(trainer, "validate", lambda *rest: next(states))
    run = small(tmp_path, "pgd_at", epochs=3)
    assert [(w["check"], w["epoch"]) for w in run.info.warnings] == [
        ("catastrophic_overfitting", 2)
    ]
    assert "90.0 %" in run.info.warnings[0]["sentence"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"settings": {"taps": "middle"}, "defense": "aicr"}, "no tap 'middle'"),
        ({"settings": {"eps": 8}, "defense": "pgd_at"}, "8"),
        ({"precision": "fp8"}, "fp8"),
        ({"device": "abacus"}, "abacus"),
        ({"limit_train": 1}, "1 training images are too few"),
    ],
)
def test_bad_input_leaves_nothing_behind(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(tmp_path / "results", **bad)
    assert not (tmp_path / "results").exists()


NETWORKS = """
import torch
from torch import nn

def good(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

def raises(shape, classes):
    raise RuntimeError("no such shape")

def wrong_size(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(63, classes))

def wrong_classes(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

def no_module(shape, classes):
    return "network"
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "no such shape"),
        ("wrong_size", "fails on images"),
        ("wrong_classes", "for two images"),
        ("no_module", "gave a str"),
        ("missing", "missing"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path: Path, name: str, message: str) -> None:
    file = tmp_path / "net.py"
    file.write_text(NETWORKS)
    with pytest.raises(UserError, match=message):
        run_with(tmp_path, f"{file}:{name}")
    assert not (tmp_path / "results").exists()


def run_with(tmp_path: Path, model: str) -> Run:
    from robustbench_defenses.training.train import train

    return train(
        "nt", "digits", model, preset="smoke", epochs=1, results_dir=tmp_path / "results", threads=1
    )


def test_a_network_from_a_file_trains_and_loads(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(NETWORKS)
    run = run_with(tmp_path, f"{file}:good")
    assert run.info.model == f"{file}:good"
    assert run.deployed()(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def phases_seen(run: Run) -> Iterator[str]:
    yield from (phase["name"] for phase in run.info.phases)


def test_aicr_deploys_both_rules(tmp_path: Path) -> None:
    run = small(tmp_path, "aicr", settings={"projector_width": 16})
    assert list(phases_seen(run)) == ["pretrain", "aicr"]
    images = load("digits", "test").images[:50]
    soft = run.deployed()(images)
    near = run.deployed(options={"rule": "nearest_centre"})(images)
    assert soft.shape == near.shape == (50, 10)
    assert (near <= 0).all()
    assert not torch.equal(soft, near)
