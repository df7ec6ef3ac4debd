"""AutoAttack: four attacks in the published order and budgets, each on what the others left.

standard (Croce and Hein 2020): APGD on cross-entropy, APGD on the targeted DLR loss towards nine
classes, targeted FAB towards nine classes, Square with 5,000 queries; 100 iterations and one
restart each. In L1 (Croce and Hein 2021) APGD runs with five restarts and five targets.
rand (subjects that answer at random): APGD on cross-entropy and on DLR, gradients averaged over
the subject's draws. plus: APGD on cross-entropy and on the untargeted DLR loss with five restarts
each, Square, and the targeted attacks towards nine classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ..engine.protocol import Attack
from .apgd import APGD
from .fab_t import FabT
from .square import Square

CARD = {
    "object": "AutoAttack",
    "version": 2,
    "source": "Croce and Hein 2020, section 5; L1: Croce and Hein 2021",
    "aliases": ["aa"],
    "variants": {
        "autoattack_linf": {"set": {"norm": "linf"}, "summary": "AutoAttack in the Linf ball"},
        "autoattack_l2": {"set": {"norm": "l2"}, "summary": "AutoAttack in the L2 ball"},
        "autoattack_l1": {"set": {"norm": "l1"}, "summary": "AutoAttack in the L1 ball"},
    },
    "cost": "100 + 900 + 900 forward and backward passes and 5,000 forward passes at most",
    "differences": (
        "an example leaves a member at once when it breaks, not when the member ends; fewer than "
        "ten classes use as many targets as there are, three classes the untargeted DLR for each, "
        "two the plain margin. "
        "plus: targeted FAB stands for the untargeted one too."
    ),
    "params": {
        "norm": {"help": "norm of the budget"},
        "version": {"help": "which members; auto: standard, and rand for random subjects"},
        "steps": {"unit": "iterations", "min": 1, "help": "of APGD and FAB", "papers": {"aa": 100}},
        "n_queries": {"unit": "queries", "min": 1, "help": "of Square", "papers": {"aa": 5000}},
    },
}


@dataclass(frozen=True)
class AutoAttack:
    norm: Literal["linf", "l2", "l1"] = "linf"
    version: Literal["auto", "standard", "rand", "plus"] = "auto"
    steps: int = 100
    n_queries: int = 5000

    restarts: ClassVar[int] = 1

    def members(self, classes: int) -> tuple[tuple[str, Attack], ...]:
        """The attacks in order, for a subject of so many classes.

        With two classes DLR is the plain margin, with three there is its untargeted form alone
        (`engine.losses`, `APGD.ask`).
        """
        l1 = self.norm == "l1"
        apgd = APGD(norm=self.norm, steps=self.steps, restarts=5 if l1 else 1, large_radius=l1)
        if self.version == "rand":
            return (("apgd_ce", apgd), ("apgd_dlr", replace(apgd, loss="dlr")))
        fab = FabT(norm=self.norm, steps=self.steps)
        square = Square(norm=self.norm, n_queries=self.n_queries, rescale_schedule=False)
        if self.version == "plus":
            five = replace(apgd, restarts=5)
            return (
                ("apgd_ce", five),
                ("apgd_dlr", replace(five, loss="dlr")),
                ("square", square),
                ("apgd_t", replace(apgd, loss="dlr", targets=9, restarts=1)),
                ("fab_t", fab),
            )
        return (
            ("apgd_ce", apgd),
            ("apgd_t", replace(apgd, loss="dlr", targets=5 if l1 else 9, restarts=1)),
            ("fab_t", fab),
            ("square", square),
        )

    def when_random(self) -> AutoAttack:
        """What runs against a subject that answers at random."""
        return replace(self, version="rand") if self.version == "auto" else self

    def passes(self, classes: int) -> tuple[int, int]:
        """The sum over the members' runs."""
        forward = backward = 0
        for _, attack in self.members(classes):
            runs = attack.runs(classes) if hasattr(attack, "runs") else attack.restarts
            once = attack.passes(classes)
            forward, backward = forward + runs * once[0], backward + runs * once[1]
        return forward, backward
