"""Reproduced items for tests: a table with every kind of cell, and figures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from robustbench_defenses.evaluation.schema import Environment
from robustbench_defenses.report.item import (
    Agreement,
    ColumnAgreement,
    Item,
    ItemCell,
    ItemClaim,
    ItemRun,
    Measured,
)
from tests.evaluation import builders

DEFENSES = ("nt", "pgd_at", "afd")
ATTACKS = ("none", "fgsm", "pgd_linf")
PRINTED = {"none": 94.5, "fgsm": 60.0, "pgd_linf": 40.0}
RESULT = "evals/digits-lenet-afd-smoke-s0-1f3c9a72/pgd_linf-77ab01c2.json"


def environment() -> Environment:
    return Environment(
        rrd="0.1.0",
        torch="2.13.0",
        python="3.11.9",
        platform="Linux x86_64",
        device="cpu",
        threads=2,
        precision="bf16",
        git_commit=None,
        command="rrd reproduce afd/table1",
        date="2026-01-02T03:04:05+00:00",
    )


def measured(value: float, **changes: Any) -> Measured:
    values: dict[str, Any] = {
        "value": value,
        "low": max(value - 2.5, 0),
        "high": min(value + 2.0, 100),
        "n": 1000,
        "results": (RESULT,),
    }
    return Measured(**(values | changes))


def cell(keys: dict[str, Any], ours: float | None = None, **changes: Any) -> ItemCell:
    """A cell in percent; `measured` takes changes of our number."""
    own = changes.pop("measured", {})
    values: dict[str, Any] = {
        "keys": keys,
        "metric": "accuracy",
        "unit": "percent",
        "ours": None if ours is None else measured(ours, **own),
        "status": "selected" if ours is None else "measured",
    }
    return ItemCell(**(values | changes))


def item(cells: Sequence[ItemCell], **changes: Any) -> Item:
    """An item that is a table of defenses against settings and attacks unless told otherwise."""
    printed = [one for one in cells if one.printed is not None]
    values: dict[str, Any] = {
        "id": "afd/table1",
        "kind": "table",
        "title": "Accuracy of four defenses under white-box & transfer attacks <b>",
        "source": "Bashivan and others 2021, table 1",
        "metric": "accuracy",
        "unit": "percent",
        "preset": "quick",
        "n": 1000,
        "rows": ("dataset", "defense"),
        "columns": ("setting", "attack"),
        "cells": tuple(cells),
        "agreement": Agreement(
            printed=len(printed),
            measured=sum(one.ours is not None for one in printed),
            within_two=1,
        ),
        "command": "rrd reproduce afd/table1 --strong",
        "environment": environment(),
    }
    return Item(**(values | changes))


def keys(defense: str, attack: str, setting: str = "white_box", **more: Any) -> dict[str, Any]:
    place = {"dataset": "mnist", "defense": defense, "setting": setting, "attack": attack}
    return place | {"eps": 0.3} | more


def table(**changes: Any) -> Item:
    """Two data sets, three defenses; clean, white box, transfer and strong; another arm; cells
    that are flagged, cited, failed, without data, and from three seeds."""
    cells = []
    for dataset, (at, defense) in itertools.product(("mnist", "cifar10"), enumerate(DEFENSES)):
        for attack in ATTACKS:
            setting = "clean" if attack == "none" else "white_box"
            place = keys(defense, attack, setting, dataset=dataset)
            ours = PRINTED[attack] + (-1.0, 3.5, -17.25)[at]
            cells.append(cell(place, ours, printed=PRINTED[attack]))
        place = keys(defense, "fgsm", "black_box", dataset=dataset)
        cells.append(cell(place, 88.0, printed=87.5, printed_as=".875", note="read from a scan"))
        place = keys(defense, "strong", dataset=dataset)
        own = {"n": 200, "results": (RESULT, "evals/b.json"), "own_attacks": 43.5 - 2 * at}
        cells.append(cell(place, 30.0 - 5 * at, measured=own))
    cells[-3] = cell(cells[-3].keys, 22.0, printed=40.0, measured={
        "diagnostics": (
            builders.diagnostic(severity="error", name="logit <scale>", sentence="94 % -> 11 %"),
            builders.diagnostic(),
            builders.diagnostic(severity="info", name="sample size"),
        )
    })  # fmt: skip
    cells[0] = cell(cells[0].keys, 93.5, printed=94.5, measured={"seeds": (93.0, 94.0)})
    cells[1] = cell(cells[1].keys, printed=60.0, cited=True, status="cited")
    cells[2] = cell(cells[2].keys, printed=40.0, status="failed", reason="out of memory")
    cells += [
        cell(keys("afd", "fgsm"), 55.0, printed=60.0, arm="paper"),
        cell(keys("afd", "pgd_linf"), 35.0, printed=40.0, arm="paper"),
        cell(
            keys("nt", "fgsm", dataset="svhn"), printed=1.0, status="missing_data", reason="no svhn"
        ),
    ]  # fmt: skip
    values: dict[str, Any] = {
        "strong_n": 200,
        "readings": {"paper": "the losses as printed"},
        "notes": ("Rows are renamed.", "eps is on [0,1] pixels."),
        "claims": (
            ItemClaim(id="c1", text="afd beats nt", ours=True, printed=True, sentence="holds"),
            ItemClaim(
                id="c2",
                text="black box lies above white box",
                ours=False,
                printed=True,
                sentence="does not hold: afd fgsm 88.0 against 90.0 and 2 more",
            ),
            ItemClaim(id="c3", text="features are salient"),
        ),
        "runs": (
            ItemRun(
                id="mnist-lenet-afd-quick-s0-1f3c9a72",
                defense="afd",
                dataset="mnist",
                model="lenet",
                seed=0,
                epochs=6,
                clean_accuracy=0.981,
                seconds=312.0,
                warnings=("the loss diverged in epoch 3",),
                deviations=("epochs 6 instead of 100", "batch_size 64 instead of 128"),
            ),
            ItemRun(
                id="mnist-lenet-nt-quick-s0-2f3c9a72",
                defense="nt",
                dataset="mnist",
                model="lenet",
                seed=0,
                epochs=6,
                deviations=("epochs 6 instead of 100",),
            ),
        ),
        "agreement": Agreement(
            printed=24,
            measured=22,
            within_two=6,
            columns=(
                ColumnAgreement(
                    column={"setting": "white_box", "attack": "fgsm"}, tau=0.6667, cells=4
                ),
                ColumnAgreement(column={"setting": "clean", "attack": "none"}, tau=1.0, cells=6),
            ),
        ),
        "stand_ins": {"cifar10": "digits"},
    }
    return item(cells, **(values | changes))


def figure(**changes: Any) -> Item:
    """Two panels over eps with different grids, two curves each, points out of order, printed
    anchors from another table, and a strong curve."""
    cells = []
    for dataset, grid in (("mnist", (0.3, 0.0, 0.1)), ("cifar10", (2 / 255, 0.0, 8 / 255))):
        for (at, attack), eps in itertools.product(enumerate(("fgsm", "pgd_linf")), grid):
            place = {"dataset": dataset, "attack": attack, "eps": round(eps, 6)}
            anchor = {"elsewhere": 95.0, "source": "table2"} if eps == 0.3 else {}
            cells.append(cell(place, 90 - 150 * eps - 10 * at, **anchor))
    cells.append(cell({"dataset": "mnist", "attack": "strong", "eps": 0.3}, 5.0))
    values: dict[str, Any] = {
        "id": "aicr/figure_a2",
        "kind": "figure",
        "title": "Accuracy over the budget",
        "source": "Alagurajah and Chu 2022, figure A2",
        "rows": ("dataset", "attack"),
        "columns": ("eps",),
        "axes": {
            "x": {"name": "eps", "label": "eps of $the attack", "source": "ours"},
            "y": {"name": "accuracy", "range": [0, 100]},
            "panels": ["mnist", "cifar10"],
            "curves": ["pgd_linf", "fgsm"],
        },
    }
    return item(cells, **(values | changes))
