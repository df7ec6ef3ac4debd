"""Realistic results and records for tests: distances with a shape, everything else consistent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_defenses.core.identity import short_hash
from robustbench_defenses.evaluation import metrics, store
from robustbench_defenses.evaluation.record import Record
from robustbench_defenses.evaluation.schema import (
    Attack,
    Cost,
    Dataset,
    Diagnostic,
    Environment,
    Result,
    Subject,
)

GRID = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4]


def record(
    n: int = 360, scale: float = 0.2, clean: float = 0.97, failed: float = 0.0, seed: int = 0
) -> Record:
    """Distances from a Weibull law of the given scale; a share `failed` was never broken."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, n)
    wrong = rng.permutation(n) < round((1 - clean) * n)
    prediction = np.where(wrong, (label + 1) % 10, label)
    distance = np.where(wrong, 0.0, scale * rng.weibull(2.0, n))
    distance[~wrong & (rng.random(n) < failed)] = np.inf
    grid = np.array(GRID)
    fell = [grid[grid >= d].min() if d <= grid[-1] else np.inf for d in distance]
    queries = np.where(wrong, 1, 40)
    return Record(np.arange(n), label, prediction, distance, np.array(fell), queries)


def table(n: int = 360, scale: float = 0.2, seed: int = 0) -> Record:
    """The same examples as `record`, attacked afresh at every eps."""
    base = record(n, scale, seed=seed)
    eps = np.array(GRID)
    return Record.from_table(
        base.index,
        base.label,
        base.clean_prediction,
        base.queries,
        eps,
        base.distance[None] <= eps[:, None],
    )


def subject(defense: str = "pgd_at", **changes: Any) -> Subject:
    values: dict[str, Any] = {
        "id": f"digits-lenet-{defense}-smoke-s0-1f3c9a72",
        "kind": "run",
        "name": f"digits-lenet-{defense}-smoke-s0-1f3c9a72",
        "defense": defense,
        "model": "lenet",
        "preset": "smoke",
        "seed": 0,
        "checkpoint": "best",
        "weights": "ab" * 32,
    }
    return Subject(**(values | changes))


def diagnostic(**changes: Any) -> Diagnostic:
    values: dict[str, Any] = {
        "id": "D6",
        "name": "zero gradient",
        "severity": "warning",
        "value": 0.031,
        "threshold": 0.0,
        "n": 360,
        "fired": True,
        "sentence": "3.1 % of images have a gradient of exactly zero",
        "images": [3, 14, 15],
    }
    return Diagnostic(**(values | changes))


def result(
    rows: Record | None = None,
    defense: str = "pgd_at",
    attack: str = "pgd_linf",
    grid: Sequence[float] | None = None,
    attack_changes: dict[str, Any] | None = None,
    subject_changes: dict[str, Any] | None = None,
    dataset_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> Result:
    """A complete result whose numbers follow from `rows`."""
    rows = record() if rows is None else rows
    clean = metrics.clean_accuracy(rows)
    points = metrics.curve(rows, GRID if grid is None and rows.eps is None else grid)
    attacked = {
        "name": attack,
        "entry": attack.partition("_")[0],
        "version": 1,
        "norm": "linf",
        "parameters": {"steps": 40, "step_size": 0.01, "random_start": True},
    }
    data = {
        "name": "digits",
        "digest": "cd" * 32,
        "subset": "first",
        "n": len(rows),
        "classes": 10,
        "shape": (1, 8, 8),
    }
    values: dict[str, Any] = {
        "key": short_hash([defense, attack, attack_changes]),
        "subject": subject(**({"defense": defense} | (subject_changes or {}))),
        "dataset": Dataset(**(data | (dataset_changes or {}))),
        "attack": Attack(**(attacked | (attack_changes or {}))),
        "view": "deployed",
        "sweep": "envelope" if rows.eps is None else "independent",
        "precision": "bf16",
        "seed": 0,
        "n": len(rows),
        "clean_accuracy": clean.value,
        "clean_low": clean.low,
        "clean_high": clean.high,
        "curve": points,
        "auc": metrics.curve_auc(points, clean.value),
        "unbounded_accuracy": None,
        "distances": metrics.distance_summary(rows),
        "cost": Cost(
            forward_passes=int(rows.queries.sum()),
            backward_passes=int(rows.queries.sum()) - len(rows),
            seconds=3.04,
            peak_memory_mb=212.5,
            threads=2,
        ),
        "environment": Environment(
            rrd="0.1.0",
            torch="2.13.0",
            python="3.11.9",
            platform="Linux x86_64",
            device="cpu",
            threads=2,
            precision="bf16",
            git_commit=None,
            command="rrd eval last --attack pgd --eps-sweep",
            date="2026-01-02T03:04:05+00:00",
        ),
    }
    return Result(**(values | changes))


def stored(folder: Path, rows: Record | None = None, **settings: Any) -> store.StoredResult:
    """A result written into the store under `folder`."""
    rows = record() if rows is None else rows
    return store.save(result(rows, **settings), rows, folder)


def three_defenses(folder: Path, n: int = 360) -> list[store.StoredResult]:
    """The three subjects of a quickstart under one attack, one of them with a warning."""
    return [
        stored(folder, record(n, scale, clean), defense=name, diagnostics=fired)
        for name, scale, clean, fired in (
            ("nt", 0.06, 0.978, []),
            ("pgd_at", 0.3, 0.956, []),
            ("aicr", 0.12, 0.972, [diagnostic()]),
        )
    ]
