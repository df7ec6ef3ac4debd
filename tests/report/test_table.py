"""Terminal tables: right numbers, right order, marks, and no line wider than the screen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.evaluation import metrics
from robustbench_defenses.evaluation.schema import Member
from robustbench_defenses.evaluation.store import StoredResult
from robustbench_defenses.report import table, text
from robustbench_defenses.report.panels import panels
from tests.evaluation import builders


def _rows(shown: str) -> dict[str, list[str]]:
    """Cells of every row by its first word; two blanks or more part cells."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 2}


def test_one_row_per_subject_best_first(tmp_path: Path) -> None:
    stored = builders.three_defenses(tmp_path)
    shown = table.as_text(stored)
    rows = _rows(shown)
    assert list(rows) == ["defense", "pgd_at", "aicr", "nt"]
    assert rows["defense"][0] == "clean"
    assert rows["defense"][1] == "eps 0.05"
    for entry in stored:
        result = entry.result
        expected = [text.percent(result.clean_accuracy)]
        expected += [text.percent(p.robust_accuracy) for p in result.curve[1:]]
        cells = rows[result.subject.defense or ""]
        assert cells[: len(expected)] == expected
        assert cells[len(expected)].removesuffix(" !") == f"{result.auc:.2f}"
        assert cells[-1] == "pgd_linf"


def test_n_interval_and_diagnostics_stand_under_the_table(tmp_path: Path) -> None:
    shown = table.as_text(builders.three_defenses(tmp_path))
    assert "accuracy in % on digits, Linf, n = 360, 95 % interval up to ±5.2" in shown
    assert " ! aicr: zero gradient: 3.1 % of images have a gradient of exactly zero" in shown
    marked = [line for line in shown.splitlines() if re.search(r"\d !", line)]
    assert len(marked) == 1
    assert "aicr" in marked[0]


def test_information_leaves_no_mark(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, diagnostics=[builders.diagnostic(severity="info")])
    assert "!" not in table.as_text([stored])


def test_several_attacks_get_a_worst_case_row(tmp_path: Path) -> None:
    stored = [
        builders.stored(tmp_path, builders.record(scale=0.2)),
        builders.stored(tmp_path, builders.record(scale=0.19, failed=0.3), attack="square"),
    ]
    distance = metrics.worst_case([entry.record() for entry in stored]).distance
    row = next(line for line in table.as_text(stored).splitlines() if "worst case" in line)
    cells = re.split(r"\s{2,}", row.strip())
    expected = [text.percent(metrics.robust_accuracy(distance, e)) for e in builders.GRID[1:]]
    assert cells[2 : 2 + len(expected)] == expected
    alone = [entry.result.curve for entry in stored]
    assert any(
        metrics.robust_accuracy(distance, a.eps) < min(a.robust_accuracy, b.robust_accuracy)
        for a, b in zip(*alone)
    )


def test_a_missing_record_costs_only_the_worst_case(tmp_path: Path) -> None:
    stored = [builders.stored(tmp_path), builders.stored(tmp_path, attack="square")]
    stored[1].record_path.unlink()
    shown = table.as_text(stored)
    assert "pgd_linf" in shown
    assert "no worst case for pgd_at: record" in shown.replace("\n", " ")
    assert not any(line.split()[:2] == ["worst", "case"] for line in shown.splitlines())


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100])
def test_no_line_is_wider_than_the_screen_and_no_cell_wraps(tmp_path: Path, width: int) -> None:
    grid = [round(0.02 * at, 2) for at in range(26)]
    stored = [
        builders.stored(tmp_path, builders.record(scale=s), defense=d, attack=a, grid=grid)
        for d, s in (("nt", 0.1), ("pgd_at", 0.3))
        for a in ("pgd_linf", "fgsm")
    ]
    for chosen in (stored, stored[::2], stored[:1]):
        lines = table.as_text(chosen, width).splitlines()
        head = next(at for at, line in enumerate(lines) if "clean" in line)
        body = lines[head + 1 :]
        several = len(chosen) == 4
        assert sum("pgd_linf" in line or "fgsm" in line for line in body) >= len(chosen) * several
        assert all(len(line) <= width for line in lines)


def test_more_room_shows_more_points_and_always_the_largest(tmp_path: Path) -> None:
    grid = [round(0.02 * at, 2) for at in range(26)]
    stored = builders.stored(tmp_path, grid=grid)
    shown = []
    for width in (50, 70, 100):
        head = table.as_text([stored], width).splitlines()[0]
        points = re.findall(r"0\.\d\d", head)
        assert points[-1] == "0.50"
        shown.append(len(points))
    assert shown[0] < shown[1] < shown[2] < 25


def test_points_without_room_are_named(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, grid=[0.1, 0.2, 0.3, 0.4])
    narrow, wide = table.as_text([stored], 45), table.as_text([stored], 120)
    assert "no room" not in wide
    shown = set(re.findall(r"0\.[1-4]", narrow.splitlines()[0]))
    named = set(re.findall(r"0\.[1-4]", narrow.split("no room for eps")[1].split("(")[0]))
    assert named
    assert shown | named == {"0.1", "0.2", "0.3", "0.4"}
    assert not shown & named


def test_a_substitute_of_a_loss_is_told(tmp_path: Path) -> None:
    sentence = "DLR needs 4 classes, the subject has 3: its substitute was used"
    fewer = builders.diagnostic(id="D28", severity="info", sentence=sentence)
    shown = table.as_text([builders.stored(tmp_path, diagnostics=[fewer])])
    assert f" {sentence}" in shown
    assert "!" not in shown


def test_one_budget_gets_the_answer_form(tmp_path: Path) -> None:
    members = [
        Member(name="apgd_ce", robust_accuracy=[0.893], seconds=3.1),
        Member(name="square", robust_accuracy=[0.882], seconds=112),
    ]
    stored = builders.stored(tmp_path, attack="autoattack", grid=[0.3], members=members)
    point = stored.result.curve[0]
    shown = table.as_text([stored])
    rows = _rows(shown)
    assert rows["autoattack"][:2] == ["0.3", f"{text.percent(point.robust_accuracy)} %"]
    assert f"[{text.percent(point.low)}, {text.percent(point.high)}]" in shown
    assert "39 f 38 b" in shown
    assert re.search(r"^   square +88\.2 % +1 min 52 s$", shown, re.MULTILINE)
    assert "digits-lenet-pgd_at-smoke-s0-1f3c9a72 on digits, Linf" in shown


def test_an_attack_without_budgets_shows_what_it_left(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, grid=[], attack="cw", auc=None, unbounded_accuracy=0.02)
    assert re.search(r"cw +any +2\.0 %", table.as_text([stored]))


def test_eps_zero_alone_shows_the_clean_accuracy(tmp_path: Path) -> None:
    """Of a minimum-norm attack too, whose accuracy without a bound nobody asked for."""
    members = [Member(name="square", robust_accuracy=[0.93], seconds=1.0)]
    several = [
        builders.stored(tmp_path, grid=[0.0], attack="fgsm", auc=None),
        builders.stored(tmp_path, grid=[0.0], attack="ddn", auc=None, unbounded_accuracy=0.02),
        builders.stored(tmp_path, grid=[0.0], attack="autoattack", auc=None, members=members),
    ]
    result = several[0].result
    interval = f"[{text.percent(result.clean_low)}, {text.percent(result.clean_high)}]"
    rows = _rows(table.as_text(several))
    for name in ("fgsm", "ddn", "autoattack", "worst case"):
        assert rows[name][:3] == ["0", f"{text.percent(result.clean_accuracy)} %", interval]
    assert rows["square"][0] == "93.0 %"


def test_results_at_eps_zero_and_above_are_told_apart(tmp_path: Path) -> None:
    """With the same attack at no budget at all between them."""
    grids: list[list[float]] = [[0.0], [0.1], []]
    keys = [f"{at}" * 8 for at in range(3)]
    lines = [builders.stored(tmp_path, grid=g, key=k, auc=None) for g, k in zip(grids, keys)]
    (panel,) = panels(lines)
    labels = {line.attack for line in panel.lines if not line.worst}
    assert labels == {"pgd_linf at 0", "pgd_linf at 0.1", "pgd_linf at any eps"}


def test_minimum_norm_attacks_show_unbounded_accuracy_and_median(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, attack="ddn", unbounded_accuracy=0.02)
    shown = table.as_text([stored])
    assert stored.result.distances is not None
    assert stored.result.distances.median is not None
    assert "unbounded" in shown
    assert f"2.0   {stored.result.distances.median:.3f}" in shown


def test_only_a_clear_best_is_bold(tmp_path: Path) -> None:
    clear = panels(builders.three_defenses(tmp_path))[0]
    columns = {column.head: column for column in table.comparison_columns(clear)}
    assert columns["0.20"].bold == {0}
    near = [
        builders.stored(tmp_path, builders.record(scale=s), defense=d)
        for d, s in (("nt", 0.2), ("pgd_at", 0.202))
    ]
    columns = {column.head: column for column in table.comparison_columns(panels(near)[0])}
    assert columns["0.20"].bold == set()


def test_random_subjects_say_so(tmp_path: Path) -> None:
    stored = builders.stored(tmp_path, subject_changes={"random": True, "draws": 10})
    assert "pgd_at answers at random: verdicts over 10 draws" in table.as_text([stored])


def test_data_sets_and_norms_stand_apart(tmp_path: Path) -> None:
    stored = [
        builders.stored(tmp_path),
        builders.stored(tmp_path, attack="pgd_l2", attack_changes={"norm": "l2"}),
        builders.stored(tmp_path, defense="nt", dataset_changes={"name": "mnist"}),
    ]
    shown = table.as_text(stored)
    for where in ("digits, Linf", "digits, L2", "mnist, Linf"):
        assert f"accuracy in % on {where}" in shown
    assert "worst case " not in shown.replace("worst case\n", "")


def test_labels_say_what_differs_and_no_more(tmp_path: Path) -> None:
    def labels(*changes: dict[str, object]) -> list[str]:
        stored = [
            builders.stored(
                tmp_path / str(at),
                subject_changes={"id": f"run-{at}", "weights": f"{at:02}" * 32, **change},
            )
            for at, change in enumerate(changes)
        ]
        return sorted(panels(stored)[0].subjects)

    assert labels({}, {"defense": "nt"}) == ["nt", "pgd_at"]
    assert labels({}, {"seed": 1}) == ["pgd_at s0", "pgd_at s1"]
    assert labels({"model": "cnn6"}, {}) == ["pgd_at cnn6", "pgd_at lenet"]
    options = {"options": {"rule": "knn"}}
    assert labels({}, options) == ["pgd_at", "pgd_at rule=knn"]
    assert labels({}, {}) == ["pgd_at id=run-0", "pgd_at id=run-1"]
    files = {"defense": None, "kind": "file", "name": "net.py:build"}
    assert labels(files, {}) == ["net.py:build", "pgd_at"]


def test_equal_attacks_are_told_apart_by_their_parameters(tmp_path: Path) -> None:
    stored = [
        builders.stored(tmp_path, attack_changes={"parameters": {"steps": steps, "loss": "ce"}})
        for steps in (40, 100)
    ]
    transfer = builders.stored(tmp_path, attack_changes={"source": "digits-lenet-nt-smoke-s0"})
    attacks = [line.attack for line in panels([*stored, transfer])[0].lines]
    assert attacks == [
        "pgd_linf steps=40",
        "pgd_linf steps=100",
        "transfer pgd_linf",
        "worst case",
    ]


@pytest.mark.parametrize(
    ("eps", "labels"),
    [
        ([0.05, 0.1, 0.3], ["0.05", "0.10", "0.30"]),
        ([0.2, 0.4], ["0.2", "0.4"]),
        ([0, 0.5 / 255, 8 / 255], ["0", "0.5/255", "8/255"]),
        ([0, 8 / 255], ["0", "8/255"]),
        ([0.0025, 0.005], ["0.0025", "0.0050"]),
        ([0.3 * at / 7 for at in (1, 2)], ["0.043", "0.086"]),
        ([1.0, 2.0], ["1.0", "2.0"]),
        ([0], ["0"]),
    ],
)
def test_eps_are_written_as_the_field_does(eps: list[float], labels: list[str]) -> None:
    assert text.eps_labels(eps) == labels


def test_durations_and_long_names() -> None:
    said = [text.duration(seconds) for seconds in (3.04, 59.97, 112, 7500)]
    assert said == ["3.0 s", "1 min 0 s", "1 min 52 s", "2 h 5 min"]
    assert text.shorten("abcdefghij", 5) == "ab…ij"
    assert text.shorten("abc", 5) == "abc"


def test_members_of_an_ensemble_stand_below_it_at_every_budget(tmp_path: Path) -> None:
    rows = builders.record()
    grid = [0.1, 0.2]
    after = [metrics.robust_accuracy(rows.distance, eps) for eps in grid]
    members = [
        Member(name="apgd_ce", robust_accuracy=[x + 0.05 for x in after], seconds=3.1),
        Member(name="square", robust_accuracy=after, seconds=112),
    ]
    alone = builders.stored(tmp_path, rows, attack="autoattack", grid=grid, members=members)
    shown = _rows(table.as_text([alone]))
    assert shown["apgd_ce"] == [text.percent(x + 0.05) for x in after]
    assert shown["square"] == [text.percent(x) for x in after]
    # Several attacks on one subject: members still stand below their ensemble; bold is the worst.
    other = builders.stored(tmp_path, builders.record(scale=0.25), grid=grid)
    panel = panels([alone, other])[0]
    columns = {column.head: column for column in table.comparison_columns(panel)}
    names = columns["attack"].cells
    assert names.index("  apgd_ce") == names.index("autoattack") + 1
    assert columns["0.2"].bold == {names.index("worst case")}
    # Several subjects: the table would be of members rather than of subjects.
    third = builders.stored(tmp_path, defense="nt", grid=grid)
    assert "apgd_ce" not in table.as_text([alone, third])


def test_what_a_library_does_otherwise_stands_below_the_table(tmp_path: Path) -> None:
    said = {"backend": "foolbox", "remark": "foolbox 3.3.4: judges the last iterate alone"}
    stored = builders.stored(tmp_path, attack_changes=said)
    shown = table.as_text([stored])
    assert "pgd_linf (foolbox)" in shown
    assert "foolbox 3.3.4, pgd_linf: judges the last iterate alone" in shown


def _minimum(tmp_path: Path, *scales: float, **named: Any) -> list[StoredResult]:
    """Minimum-norm attacks `a0`, `a1` on the same examples."""
    found = []
    for at, scale in enumerate(scales):
        rows = builders.record(scale=scale, seed=0)
        attack = {"name": f"a{at}", "entry": f"a{at}"}
        found.append(
            builders.stored(
                tmp_path, rows, attack=f"a{at}", attack_changes=attack, unbounded_accuracy=0.0,
                **named,
            )
        )  # fmt: skip
    return found


def test_several_minimum_norm_attacks_are_scored(tmp_path: Path) -> None:
    near, far = _minimum(tmp_path, 0.1, 0.2)
    scores = metrics.optimality({"a0": near.record().distance, "a1": far.record().distance})
    assert scores["a0"] == 1.0
    shown = table.as_text([near, far], 120)
    assert "optimality" in shown
    assert re.search(r"a0 .* 1\.000$", shown, re.MULTILINE)
    assert re.search(rf"a1 .* {scores['a1']:.3f}$", shown, re.MULTILINE)
    (panel,) = panels([far, near])
    assert {line.attack: line.optimality for line in panel.lines} == {
        **scores,
        "worst case": None,
    }
    # Too narrow for three budgets beside it: the budgets tell more.
    assert "optimality" not in table.as_text([near, far], 60)
    one = [builders.stored(tmp_path, defense="nt", attack="pgd_linf"), near]
    assert "optimality" not in table.as_text(one)


def test_tables_and_other_examples_have_no_score(tmp_path: Path) -> None:
    near, far = _minimum(tmp_path, 0.1, 0.2)
    table_of = builders.stored(
        tmp_path, builders.table(), attack="a2", unbounded_accuracy=0.0, sweep="clipped"
    )
    fewer = builders.stored(
        tmp_path, builders.record(n=100), attack="a3", unbounded_accuracy=0.0,
        dataset_changes={"n": 100},
    )  # fmt: skip
    lines = [line for panel in panels([near, far, table_of, fewer]) for line in panel.lines]
    scored = {line.result.attack.name for line in lines if line.optimality is not None}
    assert scored == {"a0", "a1"}
