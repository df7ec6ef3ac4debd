"""Each check fires on a subject or attack with the defect it is for, and is silent otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustbench_defenses.evaluation.run import evaluate
from robustbench_defenses.evaluation.schema import Diagnostic

from .defects import (
    ATTACKS,
    Alternating,
    Counting,
    Linear,
    N,
    Wrapped,
    examples,
    flipped,
    rounding,
    same,
    write_examples,
)

INF = np.inf
CHECKS = ["D4", "D5", "D6", "D8", "D13", "D16", "D17", "D20", "D28", "D29", "D30", "D32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_examples(tmp_path_factory.mktemp("data"))


Ask = Callable[..., dict[str, Diagnostic]]


@pytest.fixture
def ask(data: str, tmp_path: Path) -> Ask:
    """Diagnostics by id of one attack (the last of several)."""

    def run(net: nn.Module, *attacks: str, n: int = 200, eps: Any = 0.05, **options: Any):  # type: ignore[no-untyped-def]
        given = {"dataset": data, "n": n, "eps": eps, "threads": 1, "precision": "fp32"}
        given["fresh"] = True  # many subjects here differ in a lambda only
        answers = list(evaluate(net, attacks, results_dir=tmp_path, **(given | options)))
        return {one.id: one for one in answers[-1].stored.result.diagnostics}

    return run


def fired(found: dict[str, Diagnostic]) -> list[str]:
    """Ids of the checks that fired; the sample of most tests is small on purpose."""
    return [one.id for one in found.values() if one.fired and one.id != "D29"]


# A subject and an attack without defect.


@pytest.mark.parametrize("name", ["pgd", "pgd_l2", "mim", "bim"])
def test_nothing_fires_on_a_linear_subject(ask: Ask, name: str) -> None:
    eps = [0.03, 0.06] if name == "pgd_l2" else [0.01, 0.02]
    found = ask(Linear(), name, n=N, eps=eps, settings={"": {"steps": 10}})
    assert list(found) == CHECKS
    assert [one.id for one in found.values() if one.fired] == []
    assert found["D8"].skipped is None  # some survive: every check but the fgsm comparison ran


def test_accuracy_on_a_linear_subject_is_the_closed_form(data: str, tmp_path: Path) -> None:
    """Image i survives eps if Z_y - Z_k > eps ||w_y - w_k||_1 for all k."""
    net = Linear()
    images, labels = examples()
    with torch.no_grad():
        logits = net(images)
        gap = logits.gather(1, labels[:, None]) - logits
        slope = (net.weight[labels][:, None] - net.weight).abs().sum(2)
        distance = (gap / slope.clamp_min(1e-9)).masked_fill(F.one_hot(labels).bool(), INF).amin(1)
    (answer,) = evaluate(
        net, ["pgd"], dataset=data, n=N, eps=[0, 0.005, 0.01, 0.02], threads=1, precision="fp32",
        settings={"": {"steps": 20}}, results_dir=tmp_path,
    )  # fmt: skip
    curve = {point.eps: point.robust_accuracy for point in answer.stored.result.curve}
    assert curve[0] == 1
    for eps in (0.005, 0.01, 0.02):
        exact = float((distance > eps).double().mean())
        assert 0.02 < exact < 0.98
        assert curve[eps] == pytest.approx(exact, abs=1.5 / N)


# Subjects with a defect.


def test_saturated_logits(ask: Ask) -> None:
    """Logits x 1e4: the float32 cross-entropy has gradient zero far from the boundary."""
    net = Wrapped(same, lambda z: 1e4 * z)
    found = ask(net, "bim")
    assert found["D6"].fired
    assert found["D6"].severity == "error"
    assert "logit_scale" in str(found["D6"].hint)
    assert not ask(net, "bim", settings={"": {"logit_scale": 1e-4}})["D6"].fired
    assert not ask(net, "bim", settings={"": {"loss": "margin"}})["D6"].fired


def test_rounded_inputs(ask: Ask) -> None:
    found = ask(Wrapped(rounding(513), same), "bim")
    assert found["D6"].severity == "error"
    assert found["D6"].value == 1
    assert len(found["D6"].images) == 20


def test_flipped_gradients(ask: Ask) -> None:
    found = ask(Wrapped(flipped, same), "pgd")
    assert found["D8"].fired
    assert found["D8"].severity == "error"
    assert not ask(Linear(), "pgd")["D8"].fired


def test_dropout_left_on(ask: Ask) -> None:
    torch.manual_seed(0)
    found = ask(Wrapped(lambda x: F.dropout(x, 0.1, training=True), same), "fgsm")
    assert found["D13"].fired


def test_batch_mean_in_the_model(ask: Ask) -> None:
    found = ask(Wrapped(lambda x: x - x.mean(0) + 0.5, same), "fgsm")
    assert found["D13"].fired
    assert found["D13"].severity == "error"
    assert "with its batch" in found["D13"].sentence


def test_buffers_that_move(ask: Ask) -> None:
    found = ask(Counting(), "fgsm")
    assert found["D13"].fired
    assert "buffers" in found["D13"].sentence


def test_training_mode_is_mentioned_and_harmless(ask: Ask) -> None:
    for trained, said in ((True, True), (False, False)):
        net = nn.Sequential(Linear(), nn.Dropout(0.5)).train(trained)
        found = ask(net, "fgsm")
        assert not found["D13"].fired
        assert ("training mode" in found["D13"].sentence) is said


def test_probabilities_instead_of_logits(ask: Ask) -> None:
    found = ask(Wrapped(same, lambda z: z.softmax(1)), "fgsm")
    assert found["D17"].fired
    assert found["D17"].severity == "error"
    assert not ask(Wrapped(same, lambda z: z.log_softmax(1)), "fgsm")["D17"].fired


# Attacks with a defect.


def test_steps_too_short(ask: Ask) -> None:
    found = ask(Linear(), "bim", settings={"": {"steps": 5, "rel_step": 0.01}})
    assert found["D20"].fired
    assert found["D20"].severity == "error"
    assert found["D20"].value == pytest.approx(0.95)
    assert not ask(Linear(), "bim", settings={"": {"steps": 5, "rel_step": 0.2}})["D20"].fired


def test_a_budget_left_unused(ask: Ask) -> None:
    """The steps could reach the boundary of the ball, and end where they began."""
    found = ask(Alternating(), "bim", settings={"": {"steps": 40, "rel_step": 0.05}})
    assert found["D20"].fired
    assert found["D20"].severity == "warning"
    assert found["D20"].value == pytest.approx(1)


def test_one_step_beats_a_weak_many(ask: Ask) -> None:
    weak = {"mim": {"steps": 4, "rel_step": 0.05}}
    found = ask(Linear(), "mim", "fgsm", settings=weak)
    assert found["D5"].fired
    assert found["D5"].severity == "error"
    assert len(found["D5"].images) > 0
    assert not ask(Linear(), "fgsm", "pgd")["D5"].fired


def test_one_step_needs_a_stored_result(ask: Ask) -> None:
    found = ask(Linear(), "pgd")
    assert not found["D5"].fired
    assert "no fgsm result" in str(found["D5"].skipped)
    assert "one-step" in str(ask(Linear(), "fgsm")["D5"].skipped)


def test_too_many_survivors_of_a_large_budget(ask: Ask) -> None:
    net = Wrapped(rounding(513), same)
    found = ask(net, "bim", eps=[0.1, 0.5])
    assert found["D4"].fired
    assert found["D4"].severity == "error"
    assert found["D4"].value > 0.98  # rounding itself errs on a few
    assert not ask(Linear(), "pgd", eps=[0.1, 0.5])["D4"].fired
    assert ask(Linear(), "pgd", eps=[0.1])["D4"].skipped is not None
    assert ask(Linear(), "pgd", eps=0.6, targeted=True)["D4"].skipped is not None


def test_points_outside_the_ball(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "over.py").write_text(ATTACKS)
    found = ask(Linear(), f"{tmp_path / 'over.py'}:Overshoot", n=50)
    assert found["D16"].fired
    assert found["D16"].severity == "error"
    assert found["D16"].value > 0


def test_a_single_step_has_no_loss_to_compare(ask: Ask) -> None:
    assert not ask(Linear(), "pgd", settings={"": {"steps": 1}})["D8"].fired
