"""`rrd attack`: images on files and pictures, a summary on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustbench_defenses.cli.main import main
from robustbench_defenses.core.norms import distance, largest_allowed

EPS = 0.2
SMALL = ["--threads", "1", "--eps", str(EPS), "-n", "30"]
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Make:
    """Runs `rrd attack --save` and returns the arrays and, under "said", the JSON document."""
    monkeypatch.chdir(results.parent)
    monkeypatch.delenv("RRD_RESULTS", raising=False)

    def run(*arguments: str) -> dict[str, Any]:
        code = main(["attack", *SMALL, "--save", "adv.npz", "--json", *arguments])
        assert code == 0
        with np.load("adv.npz") as archive:
            arrays = {name: archive[name] for name in archive.files}
        return {**arrays, "said": json.loads(capsys.readouterr().out)}

    return run


def test_the_images_are_what_the_summary_says(make: Make, results: Path) -> None:
    import robustbench_defenses as rrd

    made = make()
    clean, adversarial = torch.from_numpy(made["clean"]), torch.from_numpy(made["adversarial"])
    label = torch.from_numpy(made["label"])
    assert clean.shape == adversarial.shape == (30, 1, 8, 8)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    length = distance(adversarial, clean, "linf")
    assert (length <= largest_allowed(torch.tensor(EPS, dtype=torch.float64))).all()
    np.testing.assert_array_equal(made["distance_linf"], length.numpy())
    np.testing.assert_array_equal(made["distance_l2"], distance(adversarial, clean, "l2").numpy())
    model = rrd.load("last", results=results)
    with torch.no_grad():
        before, after = model(clean).argmax(1), model(adversarial).argmax(1)
    np.testing.assert_array_equal(made["prediction_before"], before.numpy())
    np.testing.assert_array_equal(made["prediction_after"], after.numpy())
    np.testing.assert_array_equal(made["broken"], (after != label) | (before != label))
    said = made["said"]
    assert said["n"] == 30
    assert said["attack"] == "pgd_linf"
    assert said["eps"] == EPS
    assert said["clean_accuracy"] == float((before == label).double().mean())
    assert said["accuracy_of_images"] == float((~torch.from_numpy(made["broken"])).double().mean())
    assert said["clean_accuracy"] > said["accuracy_of_images"]
    assert said["mean_distance"]["linf"] == pytest.approx(float(length.mean()))
    assert said["files"] == ["adv.npz"]


def test_nobody_leaves_early(make: Make) -> None:
    """Misclassified clean images are attacked too, and every image uses the budget."""
    made = make()
    assert (made["prediction_before"] != made["label"]).any()
    assert (made["distance_linf"] > 0.99 * EPS).all()


def test_the_numbers_do_not_depend_on_the_batch(make: Make) -> None:
    whole, parts = make(), make("--batch-size", "7")
    np.testing.assert_allclose(whole["adversarial"], parts["adversarial"], atol=1e-5)
    other = make("--seed", "1")
    assert not np.allclose(whole["adversarial"], other["adversarial"], atol=1e-3)


def test_targets_are_reached_more_often_when_wanted(make: Make) -> None:
    from robustbench_defenses.evaluation import examples

    chosen = examples.load("digits", 30, "first", None, torch.device("cpu"))
    wanted = examples.targets(chosen, 10, 0).numpy()
    plain, targeted = make(), make("--targeted")
    hit = (targeted["prediction_after"] == wanted).sum()
    assert hit > (plain["prediction_after"] == wanted).sum()
    correct = targeted["prediction_before"] == targeted["label"]
    expected = (targeted["prediction_after"] == wanted) | ~correct
    np.testing.assert_array_equal(targeted["broken"], expected)


def test_best_loss_is_kept_where_wanted(make: Make, results: Path) -> None:
    """Long steps overshoot: the best iterate has a larger loss than the last, never a smaller."""
    import robustbench_defenses as rrd

    model = rrd.load("last", results=results)

    def loss(made: dict[str, Any]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.from_numpy(made["adversarial"]))
        label = torch.from_numpy(made["label"])
        return torch.nn.functional.cross_entropy(logits, label, reduction="none")

    rough = ["--set", "rel_step=1.9", "--set", "steps=5"]
    last, best = loss(make(*rough)), loss(make(*rough, "--keep", "best_loss"))
    assert (best >= last - 1e-5).all()
    assert (best > last + 1e-3).any()


def test_a_picture_and_a_sentence(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(results.parent)
    assert main(["attack", *SMALL, "--png", "grid.png", "--attack", "fgsm"]) == 0
    said = capsys.readouterr()
    assert "fgsm_linf at eps 0.2" in said.out
    assert "30 images of digits" in said.out
    assert "wrote grid.png" in said.err
    assert Path("grid.png").read_bytes().startswith(b"\x89PNG")
    assert not list(results.glob("evals/*"))


@pytest.mark.parametrize("name", ["pgd_l2", "mim_l2", "fgsm_l2"])
def test_budgets_of_other_norms(name: str, make: Make) -> None:
    made = make("--attack", name, "--eps", "1.5", "--set", "norm=l2")
    assert made["said"]["norm"] == "l2"
    assert 0.5 < made["distance_l2"].max() <= 1.5 * (1 + 1e-6) + 1e-7
