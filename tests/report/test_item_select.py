"""Which stored items `--item` speaks of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.report.item import folder
from robustbench_defenses.report.item_select import select
from tests.report import items


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """afd/table1 at two presets, the newer one `smoke`; a figure of aicr at `quick`."""
    for at, item in enumerate((items.table(), items.table(preset="smoke"), items.figure())):
        place = folder(tmp_path, item.id, item.preset)
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(item.document()))
        os.utime(place / "result.json", (1000 + at, 1000 + at))
    return tmp_path


def _found(name: str, preset: str | None, results: Path) -> list[tuple[str, str]]:
    return [(item.id, item.preset) for item in select(name, preset, results)]


def test_an_item_a_preset_a_paper(results: Path) -> None:
    assert _found("afd/table1", None, results) == [("afd/table1", "smoke")]
    assert _found("afd/table1", "quick", results) == [("afd/table1", "quick")]
    assert _found("aicr", None, results) == [("aicr/figure_a2", "quick")]


def test_what_is_not_stored_is_named(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no item 'afd/tabel1'") as error:
        select("afd/tabel1", None, results)
    assert "did you mean 'afd/table1'" in (error.value.hint or "")
    with pytest.raises(UserError, match="not stored at preset 'quik'") as error:
        select("afd/table1", "quik", results)
    assert "'quick'" in (error.value.hint or "")
    with pytest.raises(UserError) as error:
        select("afd/table1", None, tmp_path / "nothing")
    assert "rrd reproduce afd/table1 makes it" in (error.value.hint or "")


def test_damaged_items_are_named(results: Path) -> None:
    path = folder(results, "afd/table1", "smoke") / "result.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"smoke.result\.json is no rrd.item/1 item"):
        select("afd/table1", "smoke", results)
