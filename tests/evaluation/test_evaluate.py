"""Questions, keys, answers: what is asked again, what comes from the store, what a number says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import robustbench_defenses as rrd
from robustbench_defenses.core.device import machine
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data.source import load
from robustbench_defenses.evaluation import evaluate as answering
from robustbench_defenses.evaluation import examples as choosing
from robustbench_defenses.evaluation import question as asking
from robustbench_defenses.evaluation.evaluate import Answer, Settings
from robustbench_defenses.evaluation.run import evaluate
from robustbench_defenses.evaluation.schema import Diagnostic
from robustbench_defenses.evaluation.subject import resolve

SCHEMA = Path(__file__).parents[2] / "docs" / "result.schema.json"
GRID = (0.05, 0.1, 0.2)
FEW = {"": {"steps": 4}}
Ask = Callable[..., list[Answer]]


@pytest.fixture
def ask(results: Path) -> Ask:
    """Answers about 40 examples and the shared run."""

    def run(*attacks: str, **named: Any) -> list[Answer]:
        given = {"eps": GRID, "n": 40, "threads": 1, "results_dir": results, **named}
        return list(evaluate("last", attacks or ("pgd",), **given))

    return run


def one(answers: list[Answer]) -> Answer:
    (answer,) = answers
    return answer


def check(answer: Answer, id_: str) -> Diagnostic:
    (found,) = [d for d in answer.stored.result.diagnostics if d.id == id_]
    return found


def test_results_are_valid_by_the_published_schema(ask: Ask) -> None:
    schema = json.loads(SCHEMA.read_text())
    for named in (
        {},
        {"sweep": "independent"},
        {"targeted": True, "eps": 0.1},
        {"eps": 0},
        {"norm": "l2", "eps": None},
    ):
        answer = one(ask("pgd", settings=FEW, **named))
        document = json.loads(answer.stored.path.read_text())
        jsonschema.validate(document, schema)
        assert document == answer.stored.result.to_json()
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | {"surprise": 1}, schema)


def test_the_numbers_follow_from_the_record(ask: Ask) -> None:
    answer = one(ask(settings=FEW))
    result, record = answer.stored.result, answer.stored.record()
    assert result.n == len(record) == 40
    np.testing.assert_array_equal(record.index, np.arange(40))
    np.testing.assert_array_equal(record.label, load("digits", "test").labels[:40].numpy())
    assert result.clean_accuracy == record.clean_right.mean()
    for point in result.curve:
        assert point.robust_accuracy == (record.distance > point.eps + 1e-6).mean()
        assert point.low <= point.robust_accuracy <= point.high
    assert (record.distance[~record.clean_right] == 0).all()
    fell = np.isfinite(record.budget)
    assert set(record.budget[fell]) <= {0.0, *GRID}
    assert (record.distance[fell] <= record.budget[fell] * (1 + 1e-6) + 1e-7).all()
    assert (record.queries[~record.clean_right] == 1).all()
    assert result.cost.forward_passes >= record.queries.sum()
    assert result.cost.backward_passes > 0
    accuracy = [result.clean_accuracy] + [point.robust_accuracy for point in result.curve]
    trapezoid = float(np.trapezoid(accuracy, [0, *GRID])) / GRID[-1]
    assert result.auc == pytest.approx(trapezoid)


def test_an_equal_question_is_answered_from_the_store(ask: Ask, results: Path) -> None:
    first = one(ask(settings=FEW))
    again = one(ask("pgd_linf", settings={"pgd_linf": {"steps": "4"}}, eps=[0.2, 0.1, 0.05]))
    assert not first.cached
    assert again.cached
    assert again.stored.path == first.stored.path
    fresh = one(ask(settings=FEW, fresh=True))
    assert not fresh.cached
    assert fresh.stored.path == first.stored.path
    np.testing.assert_array_equal(fresh.stored.record().distance, first.stored.record().distance)
    assert len(list(results.glob("evals/*/*.json"))) == 1


def key(results: Path, **changes: Any) -> str:
    """The key of a question; what is not named is the same in all."""
    named = {
        "subject": "last",
        "attack": "pgd",
        "dataset": "digits",
        "n": 40,
        "subset": "first",
        "precision": "auto",
        "seed": 0,
        "threads": 1,
        "batch_size": None,
        "eps": GRID,
        "settings": {"steps": 4},
        "sweep": "envelope",
        "targeted": False,
        **changes,
    }
    here = machine("cpu", named["precision"], named["threads"])
    subject = resolve(named["subject"], results, here.device)
    chosen = choosing.load(named["dataset"], named["n"], named["subset"], None, here.device)
    question = asking.ask(
        named["attack"],
        chosen.info,
        **{part: named[part] for part in ("eps", "settings", "sweep", "targeted")},
    )
    how = Settings(
        here,
        named.get("folder", results),
        precision=named["precision"],
        seed=named["seed"],
        batch_size=named["batch_size"],
        fresh=named.get("fresh", False),
    )
    if "version" in named:
        entry = dataclasses.replace(question.entry, version=named["version"])
        question = dataclasses.replace(question, entry=entry)
    return answering.question_key(subject, chosen, question, how)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": "mim", "settings": {}},
        {"attack": "pgd_l2"},
        {"settings": {"steps": 5}},
        {"settings": {"steps": 4, "loss": "margin"}},
        {"version": 2},
        {"eps": (0.05, 0.1)},
        {"eps": (0.05, 0.1, 0.2, 0.3)},
        {"sweep": "independent"},
        {"targeted": True},
        {"n": 41},
        {"subset": "random:0"},
        {"precision": "fp32"},
        {"seed": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_the_key_changes_when_the_numbers_may(changes: dict[str, Any], results: Path) -> None:
    assert key(results, **changes) != key(results)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attack": "pgd_linf"},
        {"attack": "PGD-Linf"},
        {"settings": {"steps": "4", "restarts": 1}},
        {"eps": [0.2, 0.1, 0.05, 0.1]},
        {"threads": 2},
        {"batch_size": 7},
        {"fresh": True},
        {"folder": Path("elsewhere")},
    ],
    ids=lambda changes: "-".join(changes) or "nothing",
)
def test_the_key_stays_when_the_numbers_do(changes: dict[str, Any], results: Path) -> None:
    before = torch.get_num_threads()
    try:
        assert key(results, **changes) == key(results)
    finally:
        torch.set_num_threads(before)


def test_the_key_knows_how_the_engine_searches(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {precision: key(results, precision=precision) for precision in ("auto", "fp32")}
    monkeypatch.setattr(answering, "SEARCH_VERSION", answering.SEARCH_VERSION + 1)
    assert key(results, precision="auto") != before["auto"]
    assert key(results, precision="fp32") == before["fp32"]


def test_the_key_knows_weights_and_data(results: Path, tmp_path: Path) -> None:
    import safetensors
    import safetensors.torch

    images, labels = load("digits", "test").images[:40], load("digits", "test").labels[:40]
    for name, pixels in (("a", images), ("b", images), ("c", images.flip(0))):
        np.savez(tmp_path / f"{name}.npz", images=pixels.numpy(), labels=labels.numpy())
    keys = {name: key(results, dataset=f"npz:{tmp_path}/{name}.npz") for name in "abc"}
    assert keys["a"] == keys["b"] != keys["c"]
    assert key(results, subject="last@last") in (key(results), key(results, subject="last@last"))
    before = key(results)
    (path,) = results.glob("runs/*/weights/best.safetensors")
    with safetensors.safe_open(path, framework="pt") as opened:
        header = opened.metadata()
    tensors = safetensors.torch.load(path.read_bytes())
    tensors["network.fc2.bias"][0] += 1e-6
    path.write_bytes(safetensors.torch.save(tensors, header))
    assert key(results) != before


def test_the_key_knows_the_user_s_network(results: Path, tmp_path: Path) -> None:
    """Equal weights in another forward pass are another question."""
    file = tmp_path / "net.py"
    source = "import torch\n\n\ndef build():\n    return lambda x: x.flatten(1)[:, :10] * 2\n"
    file.write_text(source)
    mine = {"subject": f"{file}:build"}
    first = key(results, **mine)
    assert first == key(results, **mine)
    file.write_text(source.replace("* 2", "* 3"))
    assert key(results, **mine) != first


def test_the_key_knows_the_user_s_attack(results: Path, tmp_path: Path) -> None:
    """`FILE.py:NAME` has no version that anybody raises: its text decides."""
    source = (Path(answering.__file__).parents[1] / "attacks" / "fgsm.py").read_text()
    source = source.replace("from ..", "from robustbench_defenses.")
    source = source.replace("from .", "from robustbench_defenses.attacks.")
    file = tmp_path / "mine.py"
    file.write_text(source)
    mine = {"attack": f"{file}:FGSM", "settings": {}}
    first = key(results, **mine)
    assert first == key(results, **mine)
    file.write_text(source + "\n# better\n")
    assert key(results, **mine) != first


def test_an_envelope_stands_on_smaller_budgets(ask: Ask) -> None:
    """What broke stays broken; each eps afresh may forget it, and costs more."""
    # Noise alone, which sometimes helps where it is stronger.
    grid, noise = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), {"": {"steps": 1, "step_size": 0.0}}
    named: dict[str, Any] = {"eps": grid, "n": 360, "settings": noise}
    envelope, table = one(ask(**named)), one(ask(sweep="independent", **named))
    rows, afresh = envelope.stored.record(), table.stored.record()
    assert rows.broken is None
    assert afresh.broken is not None
    assert afresh.eps is not None
    assert afresh.eps.tolist() == list(grid)
    assert afresh.broken.shape == (6, 360)
    np.testing.assert_array_equal(rows.distance <= grid[0] * (1 + 1e-6) + 1e-7, afresh.broken[0])
    curves = [answer.stored.result.curve for answer in (envelope, table)]
    for point, other in zip(*curves):
        assert point.robust_accuracy <= other.robust_accuracy
    assert (afresh.broken[:-1] & ~afresh.broken[1:]).any()
    assert table.stored.result.cost.forward_passes > envelope.stored.result.cost.forward_passes
    smallest = np.where(afresh.broken, np.array(grid)[:, None], np.inf).min(0)
    smallest[~afresh.clean_right] = 0
    np.testing.assert_array_equal(afresh.distance, smallest)


def test_targeted_attacks_break_fewer(ask: Ask) -> None:
    plain, targeted = one(ask(settings=FEW)), one(ask(settings=FEW, targeted=True))
    assert targeted.stored.result.attack.targeted
    left = [answer.stored.result.curve[-1].robust_accuracy for answer in (targeted, plain)]
    assert left[0] > left[1]
    assert (targeted.stored.record().distance > 0).sum() == plain.stored.record().clean_right.sum()


def test_the_random_start_is_seeded(ask: Ask) -> None:
    named: dict[str, Any] = {"norm": "l2", "eps": [0.4], "settings": FEW}
    first, again = (one(ask(**named, fresh=True)).stored.record().distance for _ in range(2))
    other = one(ask(**named, seed=1)).stored.record().distance
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_the_batch_size_decides_nothing(batch_size: int, ask: Ask) -> None:
    expected = one(ask(settings=FEW, precision="fp32")).stored.record()
    found = one(ask(settings=FEW, precision="fp32", batch_size=batch_size, fresh=True))
    record = found.stored.record()
    np.testing.assert_allclose(record.distance, expected.distance, atol=1e-6)
    np.testing.assert_array_equal(record.budget, expected.budget)


def test_one_step_is_asked_first_and_compared(ask: Ask) -> None:
    """D5: whatever the order of the names; without fgsm the check says that it could not run."""
    alone = one(ask("bim", settings=FEW))
    assert check(alone, "D5").skipped == "no fgsm result on the same examples"
    names = [answer.stored.result.attack.name for answer in ask("mim", "fgsm", "pgd")]
    assert names == ["fgsm_linf", "mim_linf", "pgd_linf"]
    compared = check(one(ask("pgd")), "D5")
    assert compared.skipped is None
    assert not compared.fired
    assert check(one(ask("fgsm")), "D5").skipped == "this is the one-step attack"


def test_one_step_that_beats_many_fires(ask: Ask) -> None:
    """Two tiny steps leave what one whole step breaks."""
    answers = ask("fgsm", "pgd", settings={"pgd": {"steps": 2, "rel_step": 0.01}})
    weak = answers[1]
    fgsm, pgd = (answer.stored.record() for answer in answers)
    only = np.isfinite(fgsm.distance) & np.isinf(pgd.distance)
    found = check(weak, "D5")
    assert found.fired
    assert found.severity == "error"
    assert found.value == pytest.approx(only.mean(), abs=0.03)
    assert set(found.images) <= set(fgsm.index[only])
    assert check(weak, "D20").fired


def test_fgsm_of_another_question_is_not_compared(ask: Ask) -> None:
    ask("fgsm", n=39)
    assert check(one(ask("pgd", settings=FEW)), "D5").skipped
    ask("fgsm", seed=3)
    assert check(one(ask("pgd", settings=FEW, fresh=True)), "D5").skipped
    ask("fgsm", sweep="independent")
    assert check(one(ask("pgd", settings=FEW, fresh=True)), "D5").skipped is None


def test_subsets(ask: Ask) -> None:
    def record(**named: Any) -> Any:
        return one(ask("fgsm", eps=0.1, **named)).stored.record()

    first = record()
    correct = record(subset="correct")
    assert correct.clean_right.all()
    assert len(correct) == 40
    right = first.index[first.clean_right]
    np.testing.assert_array_equal(correct.index[: len(right)], right)
    drawn = record(subset="random:3")
    assert len(set(drawn.index)) == 40
    assert drawn.index.max() > 100
    np.testing.assert_array_equal(drawn.index[:20], record(subset="random:3", n=20).index)
    assert not np.array_equal(drawn.index, record(subset="random:4").index)
    fold = record(subset="fold:3", n=-1)
    np.testing.assert_array_equal(fold.index, np.arange(3, 360, 10))
    everything = record(n=None)
    assert len(everything) == 360


def test_everything_is_checked_before_the_first_attack(ask: Ask, results: Path) -> None:
    for attacks, named in (
        (("fgsm", "pdg"), {}),
        (("fgsm", "pgd_l2"), {"norm": "linf"}),
        (("fgsm", "pgd"), {"settings": {"pgd": {"steps": 0}}}),
        (("fgsm",), {"view": "soft"}),
        (("fgsm",), {"batch_size": 0}),
    ):
        with pytest.raises(UserError):
            evaluate("last", attacks, eps=0.1, n=10, results_dir=results, **named)  # type: ignore[arg-type]
    assert not list(results.glob("evals/*"))


def test_threads_are_given_back(ask: Ask) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        answer = one(ask("fgsm", threads=1))
        assert answer.stored.result.cost.threads == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(UserError):
            ask("pdg", threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_attack_works_in_its_own_norm(results: Path) -> None:
    with pytest.raises(UserError, match="ddn works in l2, not in linf"):
        rrd.evaluate("last", "ddn", norm="linf", results=results)
