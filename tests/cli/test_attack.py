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
    assert said["accuracy_of_images"] == (made["prediction_after"] == made["label"]).mean()
    assert said["broken"] == made["broken"].mean()
    assert said["clean_accuracy"] > said["accuracy_of_images"]
    assert said["mean_distance"]["linf"] == pytest.approx(float(length.mean()))
    assert said["files"] == ["adv.npz"]


def test_accuracy_is_that_of_the_images_not_of_the_question(make: Make) -> None:
    """Out of the target class or out of reach, an image may still be misclassified."""
    for asked in (["--targeted"], ["--attack", "ddn", "--eps", "0.05"]):
        made = make(*asked)
        after = made["prediction_after"] != made["label"]
        assert made["said"]["accuracy_of_images"] == pytest.approx(1 - after.mean())
        assert made["said"]["broken"] == pytest.approx(made["broken"].mean())
        assert after.sum() > made["broken"].sum()
        assert ("target" in made) == (asked == ["--targeted"])
        if "target" in made:
            wrong = made["prediction_before"] != made["label"]
            hit = made["prediction_after"] == made["target"]
            np.testing.assert_array_equal(made["broken"], hit | wrong)


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


NEAREST = {
    "ddn": ["steps=30"],
    "cw": ["steps=30", "search_steps=3", "const=1"],
    "deepfool_l2": [],
    "deepfool_linf": [],
    "fmn_linf": ["steps=30"],
    "fmn_l1": ["steps=30"],
    "fab_t_l2": ["steps=10", "targets=3"],
    "boundary": ["steps=30"],
}


def settings_of(name: str) -> list[str]:
    return [part for value in NEAREST[name] for part in ("--set", value)]


@pytest.fixture
def unbounded(results: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs `rrd attack --save` without a budget and returns the arrays."""
    monkeypatch.chdir(results.parent)
    monkeypatch.delenv("RRD_RESULTS", raising=False)

    def run(name: str, *arguments: str) -> dict[str, Any]:
        given = ["--threads", "1", "-n", "30", "--save", "adv.npz", "--quiet", *settings_of(name)]
        assert main(["attack", "--attack", name, *given, *arguments]) == 0
        with np.load("adv.npz") as archive:
            return {key: archive[key] for key in archive.files}

    return run


@pytest.mark.parametrize("name", list(NEAREST))
def test_the_nearest_images_pass_a_plain_forward(
    name: str, unbounded: Callable[..., dict[str, Any]], results: Path
) -> None:
    """Every array, against a float32 pass of the saved images and against `rrd eval`."""
    import robustbench_defenses as rrd

    made = unbounded(name)
    assert set(made) == {
        *("clean", "adversarial", "label", "prediction_before", "prediction_after", "index"),
        *("broken", "distance_linf", "distance_l2", "distance_l1", "distance_l0"),
    }
    assert {len(values) for values in made.values()} == {30}
    clean, adversarial = torch.from_numpy(made["clean"]), torch.from_numpy(made["adversarial"])
    label, broken = torch.from_numpy(made["label"]), torch.from_numpy(made["broken"])
    assert adversarial.dtype == torch.float32
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    model = rrd.load("last", results=results)
    with torch.no_grad():
        before, after = model(clean).argmax(1), model(adversarial).argmax(1)
    np.testing.assert_array_equal(made["prediction_before"], before.numpy())
    np.testing.assert_array_equal(made["prediction_after"], after.numpy())
    assert torch.equal(after != label, broken)
    # Misclassified clean images are their own nearest ones.
    wrong = before != label
    assert bool(wrong.any())
    assert torch.equal(adversarial[wrong], clean[wrong])
    for norm in ("linf", "l2", "l1", "l0"):
        length = distance(adversarial, clean, norm).numpy()
        np.testing.assert_array_equal(made[f"distance_{norm}"], length)
    options = {key: value for key, _, value in (text.partition("=") for text in NEAREST[name])}
    result = rrd.evaluate(
        "last", name, n=30, settings=options, results=results, threads=1, precision="fp32"
    )
    found = broken & ~wrong
    assert result.unbounded_accuracy == pytest.approx(1 - float(broken.double().mean()))
    own = made[f"distance_{result.attack.norm}"][found.numpy()]
    assert result.distances is not None
    assert result.distances.broken == int(found.sum())
    assert result.distances.mean == pytest.approx(float(own.mean()), rel=0.01)


def test_failures_are_last_iterates_and_marked(
    unbounded: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """One short round of C&W with a small constant breaks few."""
    weak = ["--set", "steps=2", "--set", "search_steps=1", "--set", "const=0.01"]
    NEAREST["weak"] = []
    made = unbounded("weak", "--attack", "cw", *weak)
    failed = ~made["broken"]
    assert failed.sum() > 10
    assert (made["prediction_after"][failed] == made["label"][failed]).all()
    assert (made["distance_l2"][failed] > 0).all()
    said = capsys.readouterr().out
    assert f"after {int(failed.sum())} of 30" in said


def test_a_budget_marks_what_lies_beyond_it(unbounded: Callable[..., dict[str, Any]]) -> None:
    free, bounded = unbounded("ddn"), unbounded("ddn", "--eps", "1.0")
    np.testing.assert_array_equal(free["adversarial"], bounded["adversarial"])
    assert free["broken"].sum() > bounded["broken"].sum()
    beyond = free["broken"] & ~bounded["broken"]
    assert (free["distance_l2"][beyond] > 1.0).all()
    assert (free["distance_l2"][bounded["broken"]] <= 1.0 * (1 + 1e-6) + 1e-7).all()


def test_an_ensemble_returns_what_its_members_found(make: Make, results: Path) -> None:
    import robustbench_defenses as rrd

    few = ["--set", "steps=10", "--set", "n_queries=50"]
    made = make("--attack", "autoattack", *few)
    adversarial, label = torch.from_numpy(made["adversarial"]), torch.from_numpy(made["label"])
    with torch.no_grad():
        after = rrd.load("last", results=results)(adversarial).argmax(1)
    broken = torch.from_numpy(made["broken"])
    assert torch.equal(after != label, broken)
    allowed = EPS * (1 + 1e-6) + 1e-7
    assert (made["distance_linf"] <= allowed)[made["broken"]].all()
    result = rrd.evaluate(
        "last", "autoattack", eps=EPS, n=30, settings={"steps": 10, "n_queries": 50},
        results=results, threads=1, precision="fp32",
    )  # fmt: skip
    assert result.curve[0].robust_accuracy == made["said"]["accuracy_of_images"]


def test_images_beyond_the_budget_do_not_count_as_broken(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--set", "steps=5", "--set", "n_queries=20", "--eps", "0.02"]
    made = make("--attack", "autoattack", *few)
    broken, wrong = made["broken"], made["prediction_after"] != made["label"]
    assert (wrong & ~broken).any()
    assert main(["attack", *SMALL, "--attack", "autoattack", *few]) == 0
    said = capsys.readouterr().out
    assert f"after {30 - broken.sum()} of 30" in said
    assert f"{(wrong & ~broken).sum()} more found beyond eps only" in said
    right = broken & (made["prediction_before"] == made["label"])
    assert f"of those it broke Linf {made['distance_linf'][right].mean():.3g}" in said


def test_images_that_were_wrong_stay_wrong(make: Make) -> None:
    made = make("--attack", "feature_match", "-n", "200", "--set", "finish=0", "--set", "steps=5")
    before, after = (made[f"prediction_{when}"] != made["label"] for when in ("before", "after"))
    assert before.any()
    assert after[before].all()
    assert after[made["broken"]].all()


def test_best_loss_is_no_question_for_a_search(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(results.parent)
    assert main(["attack", "--attack", "ddn", "--keep", "best_loss", "--save", "x.npz"]) == 2
    assert "ddn returns the nearest verified images" in capsys.readouterr().err
    assert not Path("x.npz").exists()


def test_the_picture_tells_which_images_hold(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distances in the attack's own norm; infinite, so "holds", where nothing was found."""
    from robustbench_defenses.report import grid

    monkeypatch.chdir(results.parent)
    seen: dict[str, Any] = {}
    monkeypatch.setattr(grid, "attack_grid", lambda *given, **named: seen.update(d=given, n=named))
    weak = ["--set", "steps=2", "--set", "search_steps=1", "--set", "const=0.01"]
    given = ["--threads", "1", "-n", "8", "--quiet", "--png", "grid.png"]
    assert main(["attack", "--attack", "cw", *weak, *given]) == 0
    assert seen["n"] == {"norm": "l2"}
    assert np.isinf(seen["d"][5]).any()


@pytest.mark.parametrize("name", ["pgd_l2", "mim_l2", "fgsm_l2"])
def test_budgets_of_other_norms(name: str, make: Make) -> None:
    made = make("--attack", name, "--eps", "1.5", "--set", "norm=l2")
    assert made["said"]["norm"] == "l2"
    assert 0.5 < made["distance_l2"].max() <= 1.5 * (1 + 1e-6) + 1e-7
