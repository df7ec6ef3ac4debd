"""Jobs: one training, or the evaluations of one trained subject; each a JSON record.

A job's output lies in the store under its own identity, so a job that ran before costs a look-up,
and two processes that run the same one do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.identity import short_hash
from ..core.progress import Progress, Silent

if TYPE_CHECKING:
    from ..training.question import Question

Settings = tuple[tuple[str, Any], ...]
CLEAN = "none"  # the attack of a clean cell


def frozen(settings: Mapping[str, Any]) -> Settings:
    """Settings as a hashable value."""
    return tuple((name, settings[name]) for name in sorted(settings))


@dataclass(frozen=True)
class Training:
    """One training as `rrd train` would be asked for it; `printed`: its settings at the preset
    `paper` where these are others."""

    defense: str
    dataset: str
    model: str | None
    preset: str
    variant: str | None = None
    seed: int = 0
    settings: Settings = ()
    precision: str = "auto"
    printed: Settings | None = field(default=None, compare=False)

    @property
    def printed_settings(self) -> Settings:
        """The settings with which the paper trained."""
        return self.settings if self.printed is None else self.printed

    @cached_property
    def question(self) -> Question:
        """The resolved question; unknown names and settings are a `UserError`."""
        from ..training.question import ask

        return ask(
            self.defense, self.dataset, self.model, preset=self.preset, variant=self.variant,
            seed=self.seed, settings=dict(self.settings), precision=self.precision,
        )  # fmt: skip

    @property
    def run_id(self) -> str:
        return self.question.run_id()


@dataclass(frozen=True)
class Asked:
    """One attack on a subject: `eps` None for an attack without a budget; `n` -1: all examples."""

    attack: str
    settings: Settings
    eps: float | None
    n: int

    @property
    def budget(self) -> float | None:
        """The eps to ask about; clean accuracy is that of eps 0."""
        return 0.0 if self.attack == CLEAN else self.eps

    @property
    def sweep(self) -> str:
        """How the budgets are swept."""
        return "envelope" if self.eps is None else "independent"


@dataclass(frozen=True)
class Evaluation:
    """One answer that an item needs: who, under which deployment options, attacked how."""

    training: Training
    options: Settings
    source: Training | None
    asked: Asked

    @property
    def subject(self) -> str:
        """The subject as the command line names it."""
        chosen = ",".join(f"{name}={value}" for name, value in self.options)
        return self.training.run_id + (f"[{chosen}]" if chosen else "")

    @property
    def key(self) -> str:
        """Names this answer within plans and outcomes."""
        source = None if self.source is None else self.source.run_id
        return short_hash({"subject": self.subject, "source": source, **asdict(self.asked)})


@dataclass(frozen=True)
class Job:
    """One piece of work: `needs` are the names of the jobs before it; `strong` marks the part that
    `--strong` adds; exactly one of `training` and `evaluations` is there."""

    name: str
    needs: tuple[str, ...] = ()
    training: Training | None = None
    evaluations: tuple[Evaluation, ...] = ()
    strong: bool = False

    @property
    def kind(self) -> str:
        return "eval" if self.training is None else "train"

    def record(self) -> dict[str, Any]:
        """The job in JSON's terms, for a process elsewhere."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Job:
        """The job of a record."""
        training = record["training"]
        return cls(
            name=record["name"],
            needs=tuple(record["needs"]),
            training=None if training is None else _training(training),
            evaluations=tuple(_evaluation(one) for one in record["evaluations"]),
            strong=record["strong"],
        )


def _settings(raw: Any) -> Settings:
    return tuple((name, value) for name, value in raw)


def _training(raw: Mapping[str, Any]) -> Training:
    printed = raw["printed"]
    return Training(
        **{
            **raw,
            "settings": _settings(raw["settings"]),
            "printed": None if printed is None else _settings(printed),
        }
    )


def _evaluation(raw: Mapping[str, Any]) -> Evaluation:
    source, asked = raw["source"], raw["asked"]
    return Evaluation(
        training=_training(raw["training"]),
        options=_settings(raw["options"]),
        source=None if source is None else _training(source),
        asked=Asked(**{**asked, "settings": _settings(asked["settings"])}),
    )


@dataclass(frozen=True)
class Place:
    """Where and how jobs run; `seed` is that of the attacks. Only seed and precision decide
    numbers."""

    results_dir: Path
    data_dir: Path | None = None
    device: str = "auto"
    threads: int | None = None
    fresh: bool = False
    precision: str = "auto"
    batch_size: int | None = None
    seed: int = 0


def run(job: Job, place: Place, progress: Progress | None = None) -> dict[str, str]:
    """Do one job here; returns what it made: the run's id, or result files by evaluation key.

    Errors: `UserError` for what the user can mend; Ctrl-C: `Interrupted`, finished work is kept.
    """
    if job.training is not None:
        return {"run": _train(job.training, place, progress or Silent())}
    return _evaluate(job, place, progress or Silent())


def _train(training: Training, place: Place, progress: Progress) -> str:
    from ..training.train import train

    run = train(
        training.defense, training.dataset, training.model, preset=training.preset,
        variant=training.variant, seed=training.seed, settings=dict(training.settings),
        data_dir=place.data_dir, results_dir=place.results_dir, device=place.device,
        precision=training.precision, threads=place.threads, fresh=place.fresh, progress=progress,
    )  # fmt: skip
    return run.id


def _evaluate(job: Job, place: Place, progress: Progress) -> dict[str, str]:
    from ..evaluation.run import evaluate

    made: dict[str, str] = {}
    for group in grouped(job.evaluations):
        one = group[0]
        answers = evaluate(
            one.subject,
            [full_name(each.asked.attack) for each in group],
            eps=one.asked.budget,
            n=one.asked.n,
            settings={full_name(e.asked.attack): dict(e.asked.settings) for e in group},
            sweep=one.asked.sweep,
            source=None if one.source is None else one.source.run_id,
            data_dir=place.data_dir,
            results_dir=place.results_dir,
            device=place.device,
            threads=place.threads,
            precision=place.precision,
            batch_size=place.batch_size,
            seed=place.seed,
            fresh=place.fresh,
            progress=progress,
        )
        # Answers come back under the full names of their attacks.
        keys = {full_name(each.asked.attack): each.key for each in group}
        for answer in answers:
            path = answer.stored.path.relative_to(place.results_dir)
            made[keys[answer.stored.result.attack.name]] = path.as_posix()
    return made


def full_name(attack: str) -> str:
    """The name that results give an attack: `bim` is `bim_linf`."""
    from ..evaluation.question import named

    return named("fgsm" if attack == CLEAN else attack, None).name


def grouped(evaluations: tuple[Evaluation, ...]) -> list[list[Evaluation]]:
    """Evaluations that one call can answer: one subject, source, budget and n, attacks differing
    in name."""
    groups: dict[tuple[Any, ...], list[Evaluation]] = {}
    for one in evaluations:
        clean = one.asked.attack == CLEAN
        place = (one.training, one.options, one.source, one.asked.eps, one.asked.n, clean)
        turn = 0
        while any(e.asked.attack == one.asked.attack for e in groups.get((*place, turn), [])):
            turn += 1
        groups.setdefault((*place, turn), []).append(one)
    return list(groups.values())
