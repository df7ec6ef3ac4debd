"""Generated parts of the documentation: blocks, pages for what has none, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustbench_defenses.core import registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.report import item_formats, reference
from tests.report import items


def block(kind: str, name: str, content: str = "") -> str:
    return f"<!-- generated: {kind} {name} -->\n{content}<!-- end -->\n"


def test_only_blocks_change(tmp_path: Path) -> None:
    page = "before\n" + block("parameters", "attack:pgd", "old\n") + "after\n"
    fresh = reference.refreshed(page, tmp_path)
    assert fresh.startswith("before\n<!-- generated: parameters attack:pgd -->\n| parameter |")
    assert fresh.endswith("<!-- end -->\nafter\n")
    assert "old" not in fresh
    assert reference.refreshed(fresh, tmp_path) == fresh


def test_parameters_show_default_range_unit_and_papers() -> None:
    rows = reference.parameters("attack:pgd").splitlines()
    assert (
        "| `steps` | `40` | int >= 1 | gradient steps of one run (iterations) "
        "| madry mnist: 40, aicr: 10 |"
    ) in rows
    assert len(rows) == 2 + len(registry.find("attack", "pgd").params)


def test_variants_show_what_they_set() -> None:
    assert "| `pgd_l1` | `norm=l1`, `steps=100` | PGD in the L1 ball (SLIDE) |" in (
        reference.variants("attack:pgd").splitlines()
    )


def test_presets_and_entries_and_diagnostics() -> None:
    assert "| `smoke` | `epochs=3`, `batch_size=64` |" in reference.presets("nt").splitlines()
    assert "[`nt`](defenses/nt.md)" in reference.entries("defenses")
    table = reference.diagnostics("all").splitlines()
    assert len(table) == 2 + 32
    assert any(row.startswith("| D16 | `validity` | every result | points that") for row in table)


def test_bars_in_cells_are_escaped() -> None:
    assert reference.table(["a"], [["x | y"]]) == "| a |\n| --- |\n| x \\| y |\n"
    assert reference.table(["a", "b"], [["x", "1"]], right=1).splitlines()[1] == "| --- | --: |"


def test_the_tables_of_an_item(tmp_path: Path) -> None:
    made = items.table()
    (tmp_path / "one").mkdir()
    text = json.dumps(made.document())
    (tmp_path / "one" / "result.json").write_text(text, encoding="utf-8")
    page = reference.refreshed(block("item", "one"), tmp_path)
    whole = item_formats.markdown(made)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 2
    assert all(row in whole.splitlines() for row in rows)


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("nonsense", "pgd", "unknown block"),
        ("parameters", "pdg", "pdg"),
        ("results", "nowhere pgd_linf", "nowhere"),
        ("item", "nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_made_is_named(tmp_path: Path, kind: str, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        reference.refreshed(block(kind, name), tmp_path)


@pytest.mark.parametrize(("kind", "folder"), sorted(reference.PAGES.items()))
def test_a_family_without_a_page_gets_one(kind: str, folder: str, tmp_path: Path) -> None:
    """Every heading is there; an attack's card fills all of them."""
    (tmp_path / folder).mkdir()
    families = [page.stem for page, _ in reference.missing(tmp_path)]
    assert families == [e.name for e in registry.entries(kind) if e.name == e.family]
    assert reference.main(["--check", str(tmp_path)]) == 1
    assert list((tmp_path / folder).iterdir()) == []
    assert reference.main([str(tmp_path)]) == 0
    for page in (tmp_path / folder).iterdir():
        text = page.read_text(encoding="utf-8")
        for heading in reference.HEADINGS[kind]:
            assert f"\n## {heading}\n" in text
        assert "<!-- end -->\n\n## " in text
    assert reference.main(["--check", str(tmp_path)]) == 0


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main([str(tmp_path / "none.md")]) == 2
    assert capsys.readouterr().err == f"error: there is no {tmp_path / 'none.md'}\n"
