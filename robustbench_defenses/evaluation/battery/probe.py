"""A diagnosis under way: the subject, at most 200 images, and the attack that is under suspicion.

The attack is run once, watched on its way; every other run is the same attack with a parameter
changed, or another attack. Each question is asked once. What any of them breaks is broken: the
worst case over all of them is an upper bound on robustness.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import registry
from ...core.errors import UserError
from ...core.norms import largest_allowed
from ...core.progress import Progress, Silent
from ...engine.caller import Cost
from ...engine.ensemble import search_for
from ...engine.search import Block, Outcome
from ...engine.twin import Twin
from ...engine.verdict import Judge
from ..checks import Check, registrar
from ..evidence import Evidence
from ..examples import Examples
from ..facts import Facts
from ..question import AttackQuestion
from ..record import Record
from ..subject import Subject
from .path import Path as Walked
from .path import Watched
from .twins import Twins

IMAGES = 200
FEWER = 50  # for measurements that cost many passes per image
SQUARE_IMAGES = 100
SQUARE_QUERIES = 500
MORE_STARTS = 2

Bools = NDArray[np.bool_]


class Lacking(Exception):  # noqa: N818 (it is an answer: the check is skipped)
    """The attack under suspicion has no such parameter."""


@dataclass
class Probe:
    """What the checks of the battery share. Arrays have one entry per image.

    `entry`, `parameters`: the attack under suspicion; `twins`: other networks for the same images;
    `distance`: the worst case so far; `used`: names of the attacks that made it.
    """

    subject: Subject
    twin: Twin
    examples: Examples
    eps: float
    question: AttackQuestion
    facts: Facts
    twins: Twins = field(default_factory=Twins)
    precision: str = "fp32"
    seed: int = 0
    view: str | None = None
    progress: Progress = field(default_factory=Silent)
    cost: Cost = field(default_factory=Cost)
    used: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.distance: NDArray[np.float64] = np.full(self.n, np.inf)
        self._standing: dict[str, Bools] = {}

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.examples)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1]."""
        return self.examples.images

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        return self.examples.labels

    @property
    def index(self) -> Tensor:
        """(N,) int64: numbers in the test set."""
        return self.examples.index

    @property
    def norm(self) -> str:
        """The norm of the budget."""
        return self.question.norm

    @property
    def attack(self) -> str:
        """The attack under suspicion."""
        return self.question.name

    @property
    def short(self) -> str:
        """Its name without the norm."""
        return self.attack.removesuffix(f"_{self.norm}")

    @property
    def whole_box(self) -> float:
        """The budget whose ball holds every image."""
        size = self.images[0].numel()
        return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[self.norm]

    # Runs.

    def run(
        self, attack: Any, name: str, eps: float, seed: int, among: Tensor, keep: bool = False
    ) -> Outcome:
        """A verdict run on the images at the positions `among`; successes join the worst case.

        `keep`: the outcome holds the images that were found.
        """
        search = search_for(
            attack,
            enough=eps,
            twin=self.twin,
            deployed=self.subject.deployed,
            block=Block(
                images=self.images[among],
                labels=self.labels[among],
                target=torch.full_like(self.labels[among], -1),
                numbers=self.index[among],
                grid=(eps,),
            ),
            subject=self.subject.name,
            seed=seed,
            attack_name=name,
            keep_points=keep,
        )
        out: Outcome = search.run()
        self.cost.forward += out.cost.forward
        self.cost.backward += out.cost.backward
        where = among.cpu().numpy()
        found = out.distance.cpu().numpy()
        self.distance[where] = np.minimum(self.distance[where], found)
        self.used[name.removesuffix(f"_{self.norm}")] = None
        return out

    def standing(
        self,
        name: str | None = None,
        *,
        eps: float | None = None,
        seed: int | None = None,
        among: Bools | None = None,
        **changes: object,
    ) -> Bools:
        """Images (N,) that survive an attack; those not `among` the attacked count as survivors.

        `name` None: the attack under suspicion, its parameters but for `changes`; `Lacking` where
        it has no such parameter.
        """
        budget = self.eps if eps is None else eps
        seed = self.seed if seed is None else seed
        who = None if among is None else among.tobytes()
        key = f"{name}|{budget}|{seed}|{who!r}|{sorted(changes.items())}"
        if key not in self._standing:
            entry, attack = self.attack_of(name, changes)
            everyone = np.ones(self.n, dtype=bool) if among is None else among
            chosen = torch.from_numpy(everyone.nonzero()[0]).to(self.labels.device)
            left = np.ones(self.n, dtype=bool)
            if len(chosen):
                out = self.run(attack, entry.name, budget, seed, chosen)
                left[everyone] = alive(out, budget)
            self._standing[key] = left
        return self._standing[key]

    def attack_of(self, name: str | None, changes: dict[str, object]) -> tuple[registry.Entry, Any]:
        """A registered attack in the probe's norm, or the one under suspicion, changed."""
        if name is not None:
            entry = registry.find("attack", f"{name}_{self.norm}")
            return entry, entry.create(**entry.settings(changes))
        entry, attack = self.question.entry, self.question.attack
        missing = [change for change in changes if not hasattr(attack, change)]
        if missing:
            raise Lacking(f"{self.short} has no parameter {missing[0]}")
        known = {param.name for param in entry.params}
        if not known.issuperset(changes):  # of a class of the user's that inherits its parameters
            return entry, replace(attack, **changes)
        try:
            settings = entry.settings({**self.question.parameters, **changes})
        except UserError as error:
            raise Lacking(error.message) from None
        return entry, entry.create(**settings)

    def watched(self, eps: float | None = None, **changes: object) -> tuple[Outcome, Walked]:
        """A run of the attack under suspicion and the path that it took."""
        budget = self.eps if eps is None else eps
        entry, attack = self.attack_of(None, changes)
        path = Walked(self.images)
        everyone = torch.arange(self.n, device=self.labels.device)
        out = self.run(Watched(attack, path), entry.name, budget, self.seed, everyone, keep=True)
        return out, path

    @functools.cached_property
    def suspect(self) -> tuple[Outcome, Walked]:
        """The attack under suspicion, watched."""
        return self.watched()

    @property
    def base(self) -> Bools:
        """Images that survive the attack under suspicion."""
        return alive(self.suspect[0], self.eps)

    @functools.cached_property
    def white(self) -> Bools:
        """Images that survive every attack of the battery that follows the subject's gradients."""
        left = self.base
        for changes in ({"loss": "margin"}, {"logit_scale": 1 / self.gap}):
            try:
                left = left & self.standing(**changes)
            except Lacking:
                left = left & self.standing("pgd", **changes)
        return left & self.starts

    @functools.cached_property
    def starts(self) -> Bools:
        """Images that survive the attack under suspicion from 1 + `MORE_STARTS` starts."""
        left = self.base & self.standing(seed=self.seed + 1)
        for start in range(2, 1 + MORE_STARTS):
            left = left & self.standing(seed=self.seed + start, among=left)
        return left

    @property
    def larger(self) -> float:
        """A budget a third larger."""
        return min(self.eps * 4 / 3, self.whole_box)

    @functools.cached_property
    def gap(self) -> float:
        """Median difference of the two largest logits of clean images."""
        top = self.logits(self.images).topk(2, dim=1).values
        gaps = top[:, 0] - top[:, 1]
        gaps = gaps[torch.isfinite(gaps)]  # a subject may rule classes out (-inf)
        return float(gaps.median().clamp_min(1e-12)) if len(gaps) else 1.0

    @property
    def left(self) -> float:
        """Share of the images that survive everything tried so far."""
        return float((self.distance > _limit(self.eps)).mean())

    # Passes over the deployed subject.

    def judge(self, batch_size: int = 1000) -> Judge:
        """A judge of images that stand at their positions in the probe."""
        return Judge(self.subject.deployed, self.subject.name, self.index, self.cost, batch_size)

    def logits(self, images: Tensor, batch_size: int = 1000) -> Tensor:
        """Float32 logits (M, K) of the deployed subject for the first M images' variants."""
        where = torch.arange(len(images), device=images.device)
        return self.judge(batch_size).logits(images, where)

    def counts(self, points: Tensor, where: Tensor) -> Tensor:
        """Which `points` (M, C, H, W) of the images at `where` (M,) count at the probe's eps."""
        eps = torch.full((len(where),), self.eps, dtype=torch.float64, device=points.device)
        labels = self.labels[where]
        found, length = self.judge().judge(
            points, self.images[where], labels, torch.full_like(labels, -1), eps, self.norm, where
        )
        hit = where[found].cpu().numpy()
        np.minimum.at(self.distance, hit, length[found].cpu().numpy())
        return found

    def numbers(self, chosen: Bools) -> Tensor:
        """The numbers in the test set of the chosen images."""
        return self.index[torch.from_numpy(chosen).to(self.index.device)]

    # What the checks of stored results look at.

    def evidence(self) -> Evidence:
        """Evidence of the attack under suspicion, at the probe's eps."""
        out, one_step = self.suspect[0], self.standing("fgsm")
        travel = getattr(self.question.attack, "travel", None)
        trace = out.trace
        return Evidence(
            record=self._record([self.eps], [self.base]),
            grid=(self.eps,),
            norm=self.norm,
            attack=self.attack,
            targeted=False,
            classes=self.facts.classes,
            zero_start=trace.zero_start.cpu().numpy(),
            zero_end=trace.zero_end.cpu().numpy(),
            tried=trace.tried.cpu().numpy(),
            compared=trace.compared.cpu().numpy(),
            loss_rose=trace.loss_rose.cpu().numpy(),
            reach=trace.reach.cpu().numpy(),
            travel={} if travel is None else {self.eps: travel(self.eps)},
            invalid_claims=out.invalid_claims,
            pixel_range=self.facts.pixel_range,
            probabilities=self.facts.probabilities,
            coupling=self.facts.coupling,
            buffers_changed=self.facts.buffers_changed,
            trained_mode=self.facts.trained_mode,
            one_step=self._record([self.eps], [one_step]),
            random=self.facts.random,
            dataset=self.facts.dataset,
            parameters=self.question.parameters,
            trained_eps=self.facts.trained_eps,
        )

    def evidence_at(self, evidence: Evidence, *budgets: float) -> Evidence:
        """The same, of the attack under suspicion at other budgets, each attacked afresh."""
        rows = [self.base if eps == self.eps else self.standing(eps=eps) for eps in budgets]
        return replace(evidence, record=self._record(list(budgets), rows), grid=tuple(budgets))

    def _record(self, budgets: list[float], standing: list[Bools]) -> Record:
        clean = self.suspect[0].clean_prediction.cpu().numpy()
        return Record.from_table(
            self.index.cpu().numpy(), self.labels.cpu().numpy(), clean,
            np.zeros(self.n, dtype=np.int64), np.array(budgets, dtype=np.float64),
            ~np.stack(standing),
        )  # fmt: skip


CHECKS: list[Check[Probe]] = []
check = registrar(CHECKS)


def alive(out: Outcome, eps: float) -> Bools:
    """Images (N,) of an outcome that survive `eps`."""
    left: Bools = (out.distance > _limit(eps)).cpu().numpy()
    return left


def first(n: int, count: int) -> Bools:
    """The first `count` of `n` images."""
    return np.arange(n) < count


def _limit(eps: float) -> float:
    return float(largest_allowed(torch.tensor(eps).double()))
