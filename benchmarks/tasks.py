"""What is compared: our attack, the method of the peers, and the parameters that both are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peers import Ask, Peer

# Budgets by data set and norm; the eight-point sweeps begin at 0, which costs one clean pass.
EPS = {
    "mnist": {"linf": 0.3, "l2": 2.0, "l1": 10.0},
    "cifar10_part": {"linf": 8 / 255, "l2": 0.5, "l1": 12.0},
    "digits": {"linf": 0.15, "l2": 0.8, "l1": 3.0},
}
GRID = {
    "mnist": (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5),
    "cifar10_part": tuple(level / 255 for level in (1, 2, 4, 6, 8, 12, 16)),
    "digits": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4),
}
MNIST_STEP = 0.01  # PGD in Linf on MNIST; elsewhere 2.5 eps / steps


@dataclass(frozen=True)
class Task:
    """One comparison.

    `ours`: our registered attack; `norm`; `steps` of a run (None: not a parameter of ours); `step`:
    length of a step in pixel units, `share`: the same as a share of eps; `settings` of ours beside
    these; `minimum`: the nearest point is wanted and norms are compared; `sweep`: over `GRID`;
    `capped`: a minimum-norm attack that is asked about one budget; `slow`: on fewer images in a
    comparison of strength; `method`: what the peers call it where that is not the task's name;
    `peer_steps`: of the peers, where they need another number to come as near as ours.
    """

    ours: str
    norm: str = "linf"
    steps: int | None = 100
    step: float | None = None
    share: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    minimum: bool = False
    sweep: bool = False
    capped: bool = False
    slow: bool = False
    method: str = ""
    peer_steps: int | None = None

    def ask(self, dataset: str, eps: float, batch: int, seed: int) -> Ask:
        """The task as the peers are asked; `eps` is nan where the nearest point is wanted."""
        steps = self.peer_steps or self.steps or 100
        return Ask(
            self.norm, eps, steps, self.step_length(dataset, eps) or 0.0,
            searches=self.settings.get("search_steps", 9),
            queries=self.settings.get("n_queries", 5000), batch=batch, seed=seed,
        )  # fmt: skip

    def ours_settings(self, dataset: str, eps: float) -> dict[str, object]:
        """The parameters of our attack."""
        settings = dict(self.settings)
        length = self.step_length(dataset, eps)
        if self.ours == "cw":
            settings.update({} if length is None else {"learning_rate": length})
        elif self.sweep and not self._absolute(dataset):
            settings["rel_step"] = self.share
        elif length is not None:
            settings["step_size"] = length
        if self.steps is not None:
            settings["steps"] = self.steps
        return settings

    def step_length(self, dataset: str, eps: float) -> float | None:
        """The length of a step in pixel units, None where the attack chooses it."""
        if self.share is None:
            return self.step
        return MNIST_STEP if self._absolute(dataset) else self.share * eps

    def _absolute(self, dataset: str) -> bool:
        """True where the step does not depend on eps."""
        return self.share is None or (self.ours == "pgd_linf" and dataset == "mnist")


_SQUARE = {"n_queries": 5000, "rescale_schedule": False}  # AutoAttack's schedule

TASKS = {
    "fgsm": Task("fgsm_linf", steps=None),
    "bim": Task("bim", steps=10, share=0.1),
    "mim": Task("mim", steps=10, share=0.1),
    "pgd": Task("pgd_linf", steps=40, share=2.5 / 40),
    "pgd_l2": Task("pgd_l2", "l2", 40, share=2.5 / 40),
    "sweep": Task("pgd_linf", steps=40, share=2.5 / 40, sweep=True, method="pgd"),
    "apgd": Task("apgd_ce"),
    "apgd_l2": Task("apgd_ce_l2", "l2"),
    "apgd_l1": Task("apgd_ce_l1", "l1"),
    "apgd_dlr": Task("apgd_dlr"),
    "apgd_t": Task("apgd_t", slow=True),
    "fab_t": Task("fab_t", capped=True, slow=True),
    "fab_norm": Task("fab_t", minimum=True, slow=True),
    "square": Task("square", steps=None, settings=_SQUARE, slow=True),
    "autoattack": Task("autoattack", slow=True),
    "ddn": Task("ddn", "l2", minimum=True),
    "fmn": Task("fmn_linf", step=10.0, minimum=True),
    "fmn_l2": Task("fmn_l2", "l2", step=1.0, minimum=True),
    "deepfool": Task("deepfool_l2", "l2", 50, minimum=True),
    "deepfool_linf": Task("deepfool_linf", "linf", 50, minimum=True),
    "cw": Task("cw", "l2", step=0.01, settings={"search_steps": 9}, minimum=True, slow=True),
    "boundary": Task("boundary", "l2", 1000, minimum=True, slow=True),
    "boundary_near": Task(
        "boundary",
        "l2",
        250,
        settings={"init": "images"},
        minimum=True,
        slow=True,
        method="boundary",
        peer_steps=1000,
    ),
}

# Whose numbers count as the reference of a fixed budget: the authors' own code before the others.
_FIXED = ("pyautoattack", "foolbox", "torchattacks", "adv_lib")


def references(task: Task, able: list[Peer]) -> list[Peer]:
    """Of the peers that can do the task, those that its strength is compared with."""
    if task.minimum:
        return able
    known = {peer.name: peer for peer in able}
    return [known[name] for name in _FIXED if name in known][:1] or able
