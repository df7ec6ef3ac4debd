"""`evaluate` and `attack_images`: what `rrd eval`, `rrd attack` and the Python API call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import registry, rng
from ..core.device import machine
from ..core.errors import UserError
from ..core.norms import check_eps, distance
from ..core.progress import Progress, Silent
from ..core.view import Logits
from ..engine.caller import Cost
from ..engine.craft import craft
from ..engine.twin import search_twin
from ..engine.verdict import Judge, evaluation_mode
from . import evaluate as answering
from . import examples as choosing
from . import question as asking
from . import store
from .evaluate import Answer, Settings
from .examples import Examples
from .foreign import guarded
from .record import Record
from .schema import Diagnostic
from .subject import Subject, resolve

DEFAULT_N = 1000
DEFAULT_IMAGES = 100


def _dataset_of(subject: Subject, dataset: str | None) -> str:
    """The data set to evaluate on: the run's own unless an unregistered source is named."""
    if subject.dataset is None:
        if dataset is None:
            raise UserError(
                f"{subject.name} does not say which data set it is for", hint="--dataset NAME"
            )
        return dataset
    if dataset is None or dataset == subject.dataset:
        return subject.dataset
    entry = registry.find("dataset", dataset)
    if ":" in dataset:
        return dataset
    if entry.name == subject.dataset:
        return subject.dataset
    raise UserError(
        f"{subject.name} was trained on {subject.dataset}, not on {dataset}",
        hint="leave --dataset out, or name files of the same shape: --dataset npz:FILE",
    )


def _examples(
    subject: Subject, dataset: str | None, n: int | None, subset: str,
    data_dir: Path | None, device: torch.device,
) -> Examples:  # fmt: skip
    """The examples of a question; `n` None: at most 1,000, -1: all."""
    name = _dataset_of(subject, dataset)
    limit = None if n == -1 else n
    chosen = choosing.load(name, limit, subset, data_dir, device)
    if subset == "correct":
        with guarded(subject.name):
            chosen = choosing.only_correct(chosen, subject, limit)
    return chosen if n is not None else chosen.head(DEFAULT_N)


def evaluate(
    subject: str | nn.Module,
    attacks: Sequence[str] = ("pgd",),
    *,
    dataset: str | None = None,
    eps: Sequence[float] | float | None = None,
    norm: str | None = None,
    n: int | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    sweep: str = "envelope",
    targeted: bool = False,
    view: str | None = None,
    subset: str = "first",
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    data_dir: Path | None = None,
    results_dir: str | Path = "results",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Iterator[Answer]:
    """Answers, one per attack, for one subject; each is stored before the next begins.

    `settings`: parameters by attack name as given in `attacks` ("" for all of them); `eps` None:
    the published grid. Everything is checked before this function returns, so before the first
    attack runs. Errors: `UserError`; Ctrl-C: `Interrupted`, finished blocks of examples are kept.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: at least 1 is needed")
    results_dir = Path(results_dir)
    with _threads_kept():
        here = machine(device, precision, threads)
        target = resolve(subject, results_dir, here.device)
        chosen = _examples(target, dataset, n, subset, data_dir, here.device)
    target.view(view)
    questions = [
        asking.ask(
            name, chosen.info, norm=norm, settings=_settings_of(name, settings or {}), eps=eps,
            sweep=sweep, targeted=targeted,
        )
        for name in attacks
    ]  # fmt: skip
    how = Settings(
        machine=here,
        results_dir=results_dir,
        precision=precision,
        seed=seed,
        view=view,
        batch_size=batch_size,
        fresh=fresh,
        progress=progress or Silent(),
    )
    # One step first: the diagnostics of the others compare themselves with it.
    questions.sort(key=lambda question: not question.name.startswith("fgsm"))
    return _answers(target, chosen, questions, how)


def _answers(
    subject: Subject, examples: Examples, questions: list[asking.AttackQuestion], how: Settings
) -> Iterator[Answer]:
    for question in questions:
        with _threads_kept(how.machine.threads):
            one_step = _one_step(subject, examples, question, how)
            answer = answering.answer(subject, examples, question, how, one_step)
        yield answer


@contextlib.contextmanager
def _threads_kept(count: int | None = None) -> Iterator[None]:
    """Inside, torch has `count` threads (None: as before); afterwards as many as it had."""
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _settings_of(name: str, settings: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    return {**settings.get("", {}), **settings.get(name, {})}


def _one_step(
    subject: Subject, examples: Examples, question: asking.AttackQuestion, how: Settings
) -> Record | None:
    """The record of a stored default fgsm on the same examples and budgets, if there is one."""
    if question.name.startswith("fgsm") or question.norm not in ("linf", "l2"):
        return None
    for sweep in asking.SWEEPS:
        twin = asking.ask(
            "fgsm", examples.info, norm=question.norm, eps=question.grid, sweep=sweep,
            targeted=question.targeted,
        )  # fmt: skip
        key = answering.question_key(subject, examples, twin, how)
        found = store.find(how.results_dir, subject.about.id, twin.name, key)
        if found is not None:
            return found.record()
    return None


@dataclass(frozen=True)
class Diagnosis:
    """Is this robustness real? `left`: share that survives everything tried at `eps`; `base`: what
    PGD-40 alone leaves; passes are example-passes."""

    subject: str
    dataset: str
    norm: str
    eps: float
    n: int
    checks: list[Diagnostic]
    base: float
    left: float
    forward_passes: int
    backward_passes: int
    seconds: float

    @property
    def errors(self) -> list[Diagnostic]:
        """The checks that fired as errors."""
        return [check for check in self.checks if check.fired and check.severity == "error"]

    def document(self) -> dict[str, Any]:
        """The diagnosis in JSON's terms."""
        checks = [check.model_dump(mode="json") for check in self.checks]
        return {**asdict(self), "checks": checks, "errors": len(self.errors)}


def diagnose(
    subject: str | nn.Module,
    *,
    dataset: str | None = None,
    eps: float | None = None,
    norm: str = "linf",
    n: int | None = None,
    subset: str = "first",
    view: str | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    data_dir: Path | None = None,
    results_dir: str | Path = "results",
    progress: Progress | None = None,
) -> Diagnosis:
    """A small battery of attacks and measurements on at most 200 images at one budget.

    `eps` None: the middle of the published grid. Errors: `UserError`.
    """
    import time

    from . import battery

    begun = time.perf_counter()
    here = machine(device, precision, threads)
    target = resolve(subject, Path(results_dir), here.device)
    chosen = _examples(target, dataset, n, subset, data_dir, here.device)
    question = asking.ask("pgd", chosen.info, norm=norm, eps=eps)
    budget = eps if eps is not None else question.budgets[(len(question.budgets) - 1) // 2]
    twin = search_twin(target.view(view), chosen.images, here.precision)
    probe = battery.probe_of(target, chosen, twin, budget, question.norm, seed)
    probe.progress = progress or Silent()
    with answering.guards(target, question):
        checks = battery.diagnose(probe)
    return Diagnosis(
        subject=target.name,
        dataset=chosen.info.name,
        norm=question.norm,
        eps=budget,
        n=len(probe.labels),
        checks=checks,
        base=float(probe.base.mean()),
        left=probe.left,
        forward_passes=probe.cost.forward,
        backward_passes=probe.cost.backward,
        seconds=time.perf_counter() - begun,
    )


@dataclass(frozen=True)
class Attacked:
    """Images made by an attack and what the verdict says of them.

    `images` (N, C, H, W) in [0, 1]; `broken` (N,) bool: they count at the budget; `distance` (N,)
    float64 in the attack's norm; `prediction` (N,) int64 of the images.
    """

    images: Tensor
    broken: Tensor
    distance: Tensor
    prediction: Tensor


def attack_tensors(
    view: Logits,
    images: Tensor,
    labels: Tensor,
    name: str,
    *,
    eps: float,
    norm: str | None,
    target: Tensor | None,
    keep: str,
    seed: int,
    settings: Mapping[str, object],
    deployed: Logits | None = None,
    index: Tensor | None = None,
    subject: str | None = None,
    batch_size: int = 256,
    report: Callable[[int], None] = lambda done: None,
) -> Attacked:
    """One image run on plain tensors, see `robustbench_defenses.attack`.

    `deployed`: who judges, where that is not the attacked `view` itself; `index` (N,): the
    examples' numbers, which key their randomness (default: their positions).
    """
    _check_tensors(images, labels, target)
    if keep not in ("last", "best_loss"):
        raise UserError(f"unknown keep {keep!r}", hint="last or best_loss")
    entry = asking.named(name, norm)
    made = entry.create(**dict(settings) | ({"norm": norm} if norm and _has_norm(entry) else {}))
    if hasattr(made, "members"):
        raise UserError(
            f"{entry.name} is an ensemble and returns no images of its own",
            hint="rrd eval asks it for verdicts; for images name one of its members",
        )
    check_eps(eps, made.norm)
    everyone = torch.arange(len(images), device=images.device)
    index = everyone if index is None else index
    keys = rng.run_keys(seed, entry.name, index)
    judge = Judge(deployed or view, subject or type(view).__name__, index, Cost())
    with evaluation_mode(view, deployed):
        classes = int(judge.logits(images[:1], everyone[:1]).shape[1])
    for what, numbers in (("labels", labels), ("target", target)):
        if numbers is not None and not bool(((numbers >= 0) & (numbers < classes)).all()):
            span = f"{int(numbers.min())} to {int(numbers.max())}"
            raise UserError(f"{judge.subject} gives {classes} logits, but {what} go from {span}")
    goal = torch.full_like(labels, -1) if target is None else target
    with evaluation_mode(view, deployed):
        parts = []
        for start in range(0, len(images), batch_size):
            part = everyone[start : start + batch_size]
            parts.append(
                craft(
                    view,
                    made,
                    images[part],
                    labels[part],
                    eps,
                    key=keys[part],
                    target=goal[part],
                    keep="best_loss" if keep == "best_loss" else "last",
                )
            )
            report(start + len(part))
        points = torch.cat(parts)
        prediction = judge.logits(points, everyone).argmax(1)
        limit = torch.full((len(images),), eps, dtype=torch.float64, device=images.device)
        broken, length = judge.judge(points, images, labels, goal, limit, made.norm, everyone)
    return Attacked(points, broken, length, prediction)


def _has_norm(entry: Any) -> bool:
    return any(param.name == "norm" for param in entry.params)


def _check_tensors(images: Tensor, labels: Tensor, target: Tensor | None) -> None:
    if images.dim() < 2 or len(images) == 0 or not images.is_floating_point():
        raise UserError(
            f"images of shape {tuple(images.shape)} and type {images.dtype} are not float (N, ...)"
        )
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UserError("images must lie in [0, 1]", hint="divide 8-bit images by 255")
    for name, classes in (("labels", labels), ("target", target)):
        if classes is not None and (classes.is_floating_point() or classes.is_complex()):
            raise UserError(f"{name} of type {classes.dtype}; class numbers are needed")
        if classes is not None and classes.shape != (len(images),):
            raise UserError(f"{name} of shape {tuple(classes.shape)} for {len(images)} images")
        if classes is not None and classes.dtype != torch.int64:
            raise UserError(f"{name} of type {classes.dtype}", hint="int64 class numbers")


@dataclass(frozen=True)
class Images:
    """What an image run returned; all tensors have one row per example.

    `clean`, `adversarial` (N, C, H, W) in [0, 1]; `labels`, `before`, `after`, `index` (N,) int64;
    `broken` (N,) bool: counts by the verdict at eps; `distances`: norm -> (N,) float64.
    """

    clean: Tensor
    adversarial: Tensor
    labels: Tensor
    before: Tensor
    after: Tensor
    index: Tensor
    broken: Tensor
    distances: dict[str, Tensor]
    eps: float
    norm: str
    attack: str
    subject: str
    dataset: str

    def arrays(self) -> dict[str, Any]:
        """All of it as numpy arrays for an npz file."""
        named = {f"distance_{norm}": values for norm, values in self.distances.items()}
        tensors = {
            "clean": self.clean,
            "adversarial": self.adversarial,
            "label": self.labels,
            "prediction_before": self.before,
            "prediction_after": self.after,
            "index": self.index,
            "broken": self.broken,
            **named,
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def attack_images(
    subject: str | nn.Module,
    attack: str = "pgd",
    *,
    eps: float | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    n: int | None = None,
    settings: Mapping[str, object] | None = None,
    targeted: bool = False,
    keep: str = "last",
    view: str | None = None,
    subset: str = "first",
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    results_dir: Path = Path("results"),
    progress: Progress | None = None,
) -> Images:
    """Adversarial images of one run of an attack at one budget: the last iterate of every example.

    `n` None: at most 100, -1: all; `keep`: `last` or `best_loss`; `eps` None: the middle of the
    published grid. Nobody leaves early; misclassified clean images are attacked too.
    """
    with _threads_kept():
        here = machine(device, "fp32", threads)
        target = resolve(subject, results_dir, here.device)
        chosen = _examples(target, dataset, n, subset, data_dir, here.device)
        if n is None:
            chosen = chosen.head(DEFAULT_IMAGES)
    question = asking.ask(
        attack, chosen.info, norm=norm, settings=settings, eps=eps, targeted=targeted
    )
    if eps is None:
        eps = question.budgets[(len(question.budgets) - 1) // 2]
    seen = target.view(view)
    wanted = choosing.targets(chosen, chosen.info.classes, seed) if targeted else None
    progress = progress or Silent()
    progress.start(f"{question.name} on {target.name}", len(chosen))
    judge = Judge(target.deployed, target.name, chosen.index, Cost())
    everyone = torch.arange(len(chosen), device=here.device)
    with _threads_kept(here.threads), answering.guards(target, question):
        with evaluation_mode(target.deployed):
            before = judge.logits(chosen.images, everyone).argmax(1)
        made = attack_tensors(
            seen.logits,
            chosen.images,
            chosen.labels,
            question.name,
            eps=eps,
            norm=None,
            target=wanted,
            keep=keep,
            seed=seed,
            settings=question.parameters,
            deployed=target.deployed,
            index=chosen.index,
            subject=target.name,
            batch_size=batch_size or 256,
            report=progress.update,
        )
    progress.finish(f"{int(made.broken.sum())} of {len(chosen)} misclassified")
    return Images(
        clean=chosen.images,
        adversarial=made.images,
        labels=chosen.labels,
        before=before,
        after=made.prediction,
        index=chosen.index,
        broken=made.broken | (before != chosen.labels),
        distances={
            name: distance(made.images, chosen.images, name) for name in ("linf", "l2", "l1", "l0")
        },
        eps=eps,
        norm=question.norm,
        attack=question.name,
        subject=target.name,
        dataset=chosen.info.name,
    )
