"""An attack as asked for: name, norm, parameters and budgets, resolved or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data.source import DataInfo
from robustbench_defenses.evaluation.question import ask, named

GRIDS = {"linf": [0.0, 0.1, 0.2], "l2": [0.0, 0.5]}
INFO = DataInfo("toy", (1, 8, 8), 10, GRIDS)

ATTACK = '''
"""Does nothing."""

from dataclasses import dataclass

CARD = {{"object": "Idle", "version": 1, "source": "none"}}


@dataclass(frozen=True)
class Idle:
    steps: int = 1

{body}
'''
WHOLE = """
    norm = "linf"
    restarts = 1

    def start(self, rows): ...
    def ask(self, state, rows): ...
    def tell(self, state, rows, answer): ...
    def finished(self, state, rows): ...
    def last(self, state): ...
    def passes(self, classes): ...
"""


def test_defaults() -> None:
    question = ask("pgd", INFO)
    assert question.name == "pgd_linf"
    assert question.norm == question.attack.norm == "linf"
    assert question.grid == (0.0, 0.1, 0.2)
    assert question.budgets == (0.1, 0.2)
    assert question.sweep == "envelope"
    assert not question.targeted
    assert question.parameters["steps"] == question.attack.steps == 40


@pytest.mark.parametrize(
    ("name", "norm", "expected"),
    [
        ("pgd", None, "pgd_linf"),
        ("pgd", "l2", "pgd_l2"),
        ("pgd", "l1", "pgd_l1"),
        ("pgd_l2", None, "pgd_l2"),
        ("pgd_l2", "l2", "pgd_l2"),
        ("fgm", "l2", "fgsm_l2"),
        ("PGD", "l2", "pgd_l2"),
        ("mifgsm", None, "mim_linf"),
    ],
)
def test_name_and_norm_lead_to_one_entry(name: str, norm: str | None, expected: str) -> None:
    assert named(name, norm).name == expected
    if norm in (None, "linf", "l2") and (norm or "linf") in GRIDS:
        question = ask(name, INFO, norm=norm)
        assert question.name == expected
        assert expected.endswith(question.norm)


def test_norm_by_setting_is_norm_by_option() -> None:
    """So an equal question has an equal key, however it was put."""
    by_option = ask("pgd", INFO, norm="l2", eps=0.5)
    by_setting = ask("pgd", INFO, settings={"norm": "l2"}, eps=0.5)
    by_name = ask("pgd_l2", INFO, eps=0.5)
    assert by_option.name == by_setting.name == by_name.name
    assert by_option.parameters == by_setting.parameters == by_name.parameters
    assert by_option.attack == by_setting.attack == by_name.attack


def test_variants_keep_their_own_defaults() -> None:
    assert ask("pgd", INFO, norm="l1", eps=1).attack.steps == 100
    assert ask("pgd", INFO, settings={"norm": "l1"}, eps=1).attack.steps == 100
    assert ask("bim", INFO).attack.decay == 0


def test_settings_are_typed() -> None:
    question = ask("pgd", INFO, settings={"steps": "7", "random_start": "false", "rel_step": "0.1"})
    assert question.attack.steps == 7
    assert question.attack.random_start is False
    assert question.attack.rel_step == 0.1
    assert question.parameters["steps"] == 7


@pytest.mark.parametrize(
    ("eps", "grid"),
    [
        (0.3, (0.3,)),
        ([0.3, 0, 0.1, 0.3], (0.0, 0.1, 0.3)),
        ([8 / 255], (8 / 255,)),
        (0, (0.0,)),
        ((1, 0.5), (0.5, 1.0)),
    ],
)
def test_budgets_are_sorted_once_each(eps: object, grid: tuple[float, ...]) -> None:
    question = ask("pgd", INFO, eps=eps)  # type: ignore[arg-type]
    assert question.grid == grid
    assert question.budgets == tuple(value for value in grid if value > 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "pdg"}, "pdg"),
        ({"name": "pgd", "norm": "l0"}, "norm"),
        ({"name": "mim", "norm": "l1"}, "norm"),
        ({"name": "pgd_l2", "norm": "linf"}, "pgd_l2 works in l2, not in linf"),
        ({"name": "pgd", "norm": "l2", "settings": {"norm": "l1"}}, "contradicts"),
        ({"name": "pgd", "settings": {"stepz": 3}}, "stepz"),
        ({"name": "pgd", "settings": {"steps": "x"}}, "steps"),
        ({"name": "pgd", "settings": {"steps": 0}}, "steps"),
        ({"name": "pgd", "settings": {"loss": "cw"}}, "loss"),
        ({"name": "pgd", "sweep": "random"}, "unknown sweep 'random'"),
        ({"name": "pgd", "eps": []}, "grid is empty"),
        ({"name": "pgd", "eps": -0.1}, "negative"),
        ({"name": "pgd", "eps": 8}, "larger than the pixel range"),
        ({"name": "pgd", "eps": float("nan")}, "not a finite number"),
        ({"name": "pgd", "eps": [0.1, float("inf")]}, "not a finite number"),
        ({"name": "pgd", "norm": "l1"}, "toy has no published l1 grid"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: dict[str, object], message: str) -> None:
    name = options.pop("name")
    with pytest.raises(UserError, match=message):
        ask(name, INFO, **options)  # type: ignore[arg-type]


def test_a_typo_gets_a_suggestion() -> None:
    with pytest.raises(UserError) as caught:
        ask("pdg", INFO)
    assert "'pgd'" in str(caught.value.hint)
    with pytest.raises(UserError) as caught:
        ask("pgd", INFO, norm="l1")
    assert "--eps" in str(caught.value.hint)


def test_an_attack_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ATTACK.format(body=WHOLE))
    question = ask(f"{file}:Idle", INFO, settings={"steps": "3"})
    assert question.attack.steps == 3
    assert question.norm == "linf"
    with pytest.raises(UserError, match="works in linf, not in l2"):
        ask(f"{file}:Idle", INFO, norm="l2")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is not an attack: it has no norm, restarts, start, ask"),
        (WHOLE.replace("    def last(self, state): ...", ""), "it has no last$"),
        (WHOLE.replace('"linf"', '"l7"'), "norm 'l7'"),
    ],
)
def test_what_is_no_attack_is_refused(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(ATTACK.format(body=body))
    with pytest.raises(UserError, match=message):
        ask(f"{file}:Idle", INFO)
