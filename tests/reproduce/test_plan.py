"""Plans: sharing, selection, stand-ins, missing data, strong cells."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.reproduce import recipe as recipes
from robustbench_defenses.reproduce.jobs import CLEAN, Job
from robustbench_defenses.reproduce.plan import Plan, make


def _plan(name: str, preset: str = "smoke", folder: Path | None = None, **options: object) -> Plan:
    return make(recipes.named(name), preset, folder or Path("nowhere"), **options)  # type: ignore[arg-type]


def test_trainings_come_first_and_are_shared_between_items() -> None:
    plan = _plan("aicr")
    names = [job.name for job in plan.jobs]
    assert len(names) == len(set(names))
    seen: set[str] = set()
    for job in plan.jobs:
        assert set(job.needs) <= seen
        seen.add(job.name)
    alone = sum(len(_plan(item.id).jobs) for item in recipes.named("aicr"))
    assert len(plan.jobs) < alone
    trained = [job.training for job in plan.jobs if job.training is not None]
    assert len({training.run_id for training in trained}) == len(trained)


def test_every_selected_cell_has_answers_that_some_job_gives() -> None:
    plan = _plan("aicr", strong=True)
    given = {one.key for job in plan.jobs for one in job.evaluations}
    for wanted in plan.wanted:
        assert wanted.status == "selected"
        assert wanted.evaluations
        assert {one.key for one in wanted.evaluations} <= given


def test_answers_are_asked_once() -> None:
    plan = _plan("aicr", strong=True)
    keys = [one.key for job in plan.jobs for one in job.evaluations]
    assert len(keys) == len(set(keys))


def test_clean_cells_and_eps_0_need_no_attack() -> None:
    plan = _plan("aicr/figure2")
    at_zero = [one for one in plan.wanted if one.cell.keys["eps"] == 0]
    assert at_zero
    assert all(one.answers[0].asked.attack == CLEAN for one in at_zero)


def test_black_box_cells_have_a_source_and_white_box_cells_none() -> None:
    plan = _plan("aicr/table2")
    for wanted in plan.wanted:
        source = wanted.answers[0].source
        assert (source is not None) == (wanted.cell.keys["setting"] == "black_box")


def test_only_selects_by_any_key() -> None:
    plan = _plan(
        "aicr/table6", only={"defense": ["nt", "aicr"], "attack": ["fgsm"], "eps": ["0.10"]}
    )
    chosen = [one.cell.keys for one in plan.wanted if one.status == "selected"]
    assert {keys["defense"] for keys in chosen} == {"nt", "aicr"}
    assert {(keys["attack"], keys["eps"]) for keys in chosen} == {("fgsm", 0.1)}
    assert len(plan.wanted) == 84  # the others are in the item, as left out


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"color": ["red"]}, "no cell has a color"),
        ({"defense": ["aicr", "trades"]}, "--only defense=trades: no cell has that value"),
        ({"arm": ["nonsense"]}, "--only arm=nonsense"),
    ],
)
def test_only_speaks_of_cells_that_exist(only: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _plan("aicr/table6", only=only)


def test_other_readings_come_on_demand() -> None:
    headline = _plan("aicr/table6")
    assert {one.arm for one in headline.wanted} == {""}
    other = _plan("aicr/table6", only={"arm": ["paper"]})
    chosen = [one for one in other.wanted if one.status == "selected"]
    assert {one.arm for one in chosen} == {"paper"}
    assert {one.answers[0].training.variant for one in chosen} == {"paper"}


def test_data_that_is_not_here_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    plan = _plan("aicr/table2", "quick", tmp_path)
    assert {one.status for one in plan.wanted} == {"missing_data"}
    assert not plan.jobs
    assert "rrd data fetch mnist" in str(plan.wanted[0].reason)


def test_strong_cells_are_the_worst_over_everything_at_their_budget() -> None:
    plan = _plan("aicr/table6", strong=True)
    strong = [one for one in plan.wanted if one.worst]
    for one in strong:
        (group,) = one.worst
        attacks = [each.asked.attack for each in group]
        assert attacks[0] == "autoattack"
        assert group[0].asked.n == plan.level.strong_n
        assert len({each.asked.eps for each in group}) == 1
        assert len({each.training for each in group}) == 1
        assert len(attacks) > 1
    assert {one.cell.keys["attack"] for one in strong} == {"strong"}
    assert {one.cell.keys["eps"] for one in strong} == {0.1, 0.15, 0.2}


def test_worst_cases_are_over_attacks_that_were_not_asked_for_too() -> None:
    def groups(**only: list[str]) -> dict[str, set[str]]:
        plan = _plan("aicr/table6", strong=True, only={"defense": ["aicr"], **only})
        found = {}
        for one in plan.wanted:
            for group in one.worst:
                found[str(one.cell.keys["eps"])] = {each.key for each in group}
        return found

    assert groups(attack=["fgsm"])["0.1"] == groups()["0.1"]
    assert set(groups(attack=["fgsm"])) == {"0.1", "0.2"}  # FGSM's own budgets, and no other


def test_smoke_takes_two_points_of_a_sweep() -> None:
    widths = {one.cell.keys["width"] for one in _plan("aicr/figure3").wanted}
    assert widths == {16, 256, 1024}  # 1024 is printed in another item


def test_an_unknown_preset_is_a_user_error() -> None:
    with pytest.raises(UserError, match="unknown preset 'large'"):
        _plan("aicr/table4", "large")


def test_a_job_survives_its_record() -> None:
    import json

    for job in _plan("aicr", strong=True).jobs:
        again = Job.of(json.loads(json.dumps(job.record())))
        assert again == job
        if job.training is not None:
            assert again.training.printed == job.training.printed  # type: ignore[union-attr]


def test_slow_attacks_have_fewer_images_at_quick() -> None:
    folder = Path(os.environ.get("RRD_DATA", "data"))
    plan = _plan("aicr/table6", "quick", folder)
    if plan.missing.get("mnist"):
        pytest.skip("RRD_DATA has no MNIST")
    sizes = {one.answers[0].asked.attack: one.answers[0].asked.n for one in plan.wanted}
    assert sizes.pop("cw") == 200
    assert set(sizes.values()) == {1000}
