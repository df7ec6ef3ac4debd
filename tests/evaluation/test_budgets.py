"""Budgets and `all`: which attacks run, how hard, in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.core import registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.view import View
from robustbench_defenses.data.source import describe
from robustbench_defenses.engine.search import Search
from robustbench_defenses.evaluation import budgets
from robustbench_defenses.evaluation import question as asking
from robustbench_defenses.evaluation.limit import TimeLimit
from robustbench_defenses.evaluation.overall import Overall
from robustbench_defenses.evaluation.run import Evaluation, evaluate

NORMS = ("linf", "l2", "l1")
ENTRIES = {entry.name: entry for entry in registry.entries("attack")}


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("level", budgets.LEVELS)
def test_every_card_s_budgets_are_parameters_of_the_attack(name: str, level: str) -> None:
    entry = ENTRIES[name]
    settings = budgets.budget_of(entry, level)
    entry.create(**settings)
    assert not set(settings) - {param.name for param in entry.params}


@pytest.mark.parametrize("norm", NORMS)
def test_all_is_every_attack_of_the_norm_once(norm: str) -> None:
    names = budgets.every(norm)
    assert len(names) == len(set(names)) > 5
    attacks = [ENTRIES[name].create() for name in names]
    assert {attack.norm for attack in attacks} == {norm}
    assert len({repr(attack) for attack in attacks}) == len(attacks)
    # No entry of the norm is missing, but for names of equal parameters, variants and ensembles.
    for entry in ENTRIES.values():
        attack = entry.create()
        if attack.norm == norm and entry.card.get("budgets", {}) is not None:
            assert attack in attacks or hasattr(attack, "members"), entry.name


def test_ensembles_are_there_where_their_members_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [name for name in budgets.every("linf") if name.startswith("autoattack")]
    fewer = [entry for entry in ENTRIES.values() if entry.family != "square"]
    monkeypatch.setattr(registry, "entries", lambda kind: fewer)
    assert "autoattack_linf" in budgets.every("linf")
    assert "apgd_ce_linf" in budgets.every("linf")


class Bare:
    """A view's network without anything but logits."""

    def __call__(self, images: Any) -> Any:
        return images.flatten(1)


class Rich(Bare):
    tap_names = ("conv",)
    library = object()

    def tapped(self, images: Any) -> Any:
        return {"conv": images, "logits": images.flatten(1)}


def with_card(monkeypatch: pytest.MonkeyPatch, name: str, **card: Any) -> None:
    """The card of one entry says something more."""
    import dataclasses

    known = registry.entries("attack")
    changed = [
        dataclasses.replace(e, card={**e.card, **card}) if e.name == name else e for e in known
    ]
    monkeypatch.setattr(registry, "entries", lambda kind: changed)


@pytest.mark.parametrize("need", ["taps", "library"])
def test_an_attack_that_needs_more_than_logits(need: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_card(monkeypatch, "ddn", needs=[need])
    assert "ddn" not in budgets.every("l2", View("plain", Bare()))
    assert "ddn" in budgets.every("l2", View("rich", Rich()))
    assert "ddn" in budgets.every("l2")


def test_a_card_keeps_an_attack_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cw" in budgets.every("l2")
    assert "cw_quick" not in budgets.every("l2")
    with_card(monkeypatch, "ddn", budgets=None)
    assert "ddn" not in budgets.every("l2")


def test_nonsense_in_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    entry = ENTRIES["ddn"]
    for wrong in ({"fast": {}}, {"quick": {"stepz": 3}}, {"quick": {"steps": 0}}):
        card = {**entry.card, "budgets": wrong}
        with pytest.raises(UserError):
            budgets.budget_of(dataclasses.replace(entry, card=card), "quick")


def asked(results: Path, *attacks: str, **named: Any) -> Evaluation:
    given = {"eps": [0.1, 0.2], "threads": 1, "results_dir": results, **named}
    return evaluate("last", attacks, **given)


def parameters(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    return {one.question.name: one.question.parameters for one in evaluation.asked}


def test_a_level_gives_parameters_and_examples(results: Path) -> None:
    plain = asked(results, "pgd", "square")
    assert parameters(plain)["pgd_linf"]["steps"] == 40
    assert {len(one.examples) for one in plain.asked} == {360}
    standard = asked(results, "pgd", "square", budget="standard")
    assert parameters(standard)["pgd_linf"]["steps"] == 100
    assert parameters(standard)["pgd_linf"]["restarts"] == 5
    assert parameters(standard)["square_linf"]["n_queries"] == 5000
    deep = asked(results, "pgd", budget="deep", settings={"pgd": {"steps": 7}}, n=20)
    assert parameters(deep)["pgd_linf"]["steps"] == 7
    assert parameters(deep)["pgd_linf"]["restarts"] == 20
    assert len(deep.asked[0].examples) == 20
    with pytest.raises(UserError, match="unknown budget 'fast'"):
        asked(results, "pgd", budget="fast")


def test_a_level_has_one_number_of_examples(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budgets.LEVELS, "quick", 50)
    evaluation = asked(results, "all")
    assert {len(one.examples) for one in evaluation.asked} == {50}
    assert {len(one.examples) for one in asked(results, "all", n=60).asked} == {60}


def test_all_is_quick_and_cheap_first(results: Path) -> None:
    evaluation = asked(results, "all")
    names = [one.question.name for one in evaluation.asked]
    assert sorted(names) == sorted(budgets.every("linf", evaluation.subject.views[0]))
    assert names[0] == "fgsm_linf"
    works = [sum(one.passes) for one in evaluation.asked]
    assert works == sorted(works)
    assert parameters(evaluation)["square_linf"]["n_queries"] == 500
    l2 = asked(results, "all", norm="l2", budget="standard")
    assert {one.question.norm for one in l2.asked} == {"l2"}
    clipped = asked(results, "all", norm="l2", sweep="clipped")
    assert {"ddn", "deepfool_l2"} <= set(parameters(clipped))
    assert all(one.question.minimum for one in clipped.asked)


def test_all_beside_others_asks_nothing_twice(results: Path) -> None:
    alone = list(parameters(asked(results, "all")))
    more = list(parameters(asked(results, "all", "pgd", "autoattack")))
    assert sorted(more) == sorted([*alone, "autoattack_linf"])


def test_settings_reach_those_that_have_them(results: Path) -> None:
    found = parameters(asked(results, "all", settings={"": {"steps": 3}, "bim_linf": {"steps": 2}}))
    assert found["pgd_linf"]["steps"] == 3
    assert found["bim_linf"]["steps"] == 2
    assert "steps" not in found["fgsm_linf"]
    with pytest.raises(UserError, match="no attack of --attack all has a parameter 'stepz'"):
        asked(results, "all", settings={"": {"stepz": 3}})
    with pytest.raises(UserError, match="fgsm_linf has no parameter 'steps'"):
        asked(results, "fgsm", "pgd", settings={"": {"steps": 3}})


@pytest.mark.parametrize(("precision", "runs"), [("fp32", 1), ("bf16", 2)])
def test_declared_passes_are_never_exceeded(results: Path, precision: str, runs: int) -> None:
    """In bf16 what ends near the boundary runs once more."""
    evaluation = asked(
        results, "all", "autoattack", n=12, settings={"": {"steps": 4}}, precision=precision
    )
    declared = {one.question.name: one.passes for one in evaluation.asked}
    for answer in evaluation:
        result = answer.stored.result
        forward, backward = declared[result.attack.name]
        # Beside the search: the clean images, and at most three verdicts on each asked point.
        most, mine = runs * forward, result.attack.name
        assert result.cost.backward_passes <= runs * backward, mine
        assert result.cost.forward_passes - 12 <= 4 * most, mine
        assert (answer.stored.record().queries - 1 <= most / 12).all(), mine


def test_declared_counts_budgets_runs_and_examples() -> None:
    info = describe("digits")

    def declared(name: str, **named: Any) -> tuple[int, int]:
        return budgets.declared(asking.ask(name, info, eps=[0, 0.1, 0.2], **named), 50, 10)

    assert declared("pgd", settings={"steps": 10, "restarts": 3}) == (3000, 3000)
    assert declared("ddn", settings={"steps": 10}) == (500, 500)
    assert declared("square", settings={"n_queries": 7}) == (700, 0)
    assert declared("apgd_t", settings={"steps": 10}) == (9000, 9000)


def test_what_is_answered_is_not_open(results: Path) -> None:
    first = asked(results, "fgsm", n=20)
    assert len(first.open()) == 1
    list(first)
    both = asked(results, "fgsm", "pgd", n=20)
    assert [one.question.name for one in both.open()] == ["pgd_linf"]


def test_a_time_limit_counts_from_the_first_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_defenses.evaluation import limit

    now = [100.0]
    monkeypatch.setattr(limit.time, "monotonic", lambda: now[0])
    short = TimeLimit(2)
    now[0] = 1000
    assert not short.over
    short.begin()
    now[0] += 119
    short.begin()
    assert not short.over
    now[0] += 1
    assert short.over


def test_bad_questions_are_told_before_any_runs(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "run", None)
    for attacks, named in (
        (("all", "pdg"), {}),
        (("all", "ddn"), {"norm": "linf"}),
        (("all",), {"norm": "l0"}),
        (("all",), {"sweep": "sideways"}),
        (("all",), {"eps": [8.0]}),
        (("all",), {"time_limit": 0}),
    ):
        with pytest.raises(UserError):
            asked(results, *attacks, **named)
    assert not list(results.glob("evals/*"))


class Log:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, task: str, total: int) -> None:
        self.said.append(task)

    def update(self, done: int, note: str = "") -> None:
        self.said.append(note)

    def finish(self, note: str = "") -> None:
        self.said.append(note)


def test_the_rest_is_estimated_from_what_was_done() -> None:
    log, now = Log(), [0.0]
    overall = Overall(log, clock=lambda: now[0])
    overall.expect([100, 300, 600])
    overall.enter(100)
    overall.start("a", 10)
    now[0] = 1.0
    overall.update(5, "x")
    assert log.said == ["1 of 3 · a", "x"]  # too early to tell
    now[0] = 5.0
    overall.update(5, "x")
    # 50 of the declared passes in 5 s; 900 are left for the others.
    assert log.said[-1] == "x · then about 2 min"
    overall.finish("y")
    overall.enter(300)  # answered from the store: nothing starts
    overall.enter(600)
    overall.start("c", 10)
    overall.update(1, "z")
    assert log.said[-2:] == ["3 of 3 · c", "z"]


def test_one_question_is_not_numbered() -> None:
    log = Log()
    overall = Overall(log)
    overall.expect([10], one_subject=True)
    overall.enter(10)
    overall.start("a on b", 10)
    assert log.said == ["a on b"]


def test_one_subject_is_not_named_each_time() -> None:
    log = Log()
    overall = Overall(log)
    for one_subject, said in ((True, "1 of 2 · a"), (False, "1 of 2 · a on b")):
        overall.expect([10, 10], one_subject)
        overall.enter(10)
        overall.start("a on b", 10)
        assert log.said.pop() == said
