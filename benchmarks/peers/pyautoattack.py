"""pyautoattack: AutoAttack as its authors publish it, whole and in parts of one restart each."""

from __future__ import annotations

import logging
from typing import Any

import pyautoattack
from torch import Tensor, nn

from . import Ask, Attack

PACKAGE = "pyautoattack"
NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
logging.getLogger("auto-attack").setLevel(logging.ERROR)


def _run(runner: Any, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    points, _ = runner.run_standard_evaluation(images, labels, batch_size=ask.batch)
    return points


def autoattack(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """The standard version."""
    runner = pyautoattack.AutoAttack(
        model, norm=NORM[ask.norm], eps=ask.eps, seed=ask.seed, version="standard"
    )
    runner.apgd.n_iter = runner.apgd_targeted.n_iter = runner.fab.n_iter = ask.steps
    runner.square.n_queries = ask.queries
    return _run(runner, images, labels, ask)


def _part(name: str) -> Attack:
    """One member on its own, with one restart (the version `custom` would make five)."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
        runner = pyautoattack.AutoAttack(
            model, norm=NORM[ask.norm], eps=ask.eps, seed=ask.seed, version="custom", attacks=[name]
        )
        runner.apgd.n_restarts = runner.apgd_targeted.n_restarts = runner.fab.n_restarts = 1
        runner.apgd.n_iter = runner.apgd_targeted.n_iter = runner.fab.n_iter = ask.steps
        runner.apgd_targeted.n_target_classes = runner.fab.n_target_classes = ask.targets
        runner.apgd.use_largereps = runner.apgd_targeted.use_largereps = ask.norm == "l1"
        runner.square.n_queries = ask.queries
        return _run(runner, images, labels, ask)

    return run


ATTACKS: dict[str, Attack] = {
    "apgd": _part("apgd-ce"),
    "apgd_l2": _part("apgd-ce"),
    "apgd_l1": _part("apgd-ce"),
    "apgd_dlr": _part("apgd-dlr"),
    "apgd_t": _part("apgd-t"),
    "fab_t": _part("fab-t"),
    "square": _part("square"),
    "autoattack": autoattack,
}
