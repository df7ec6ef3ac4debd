"""Train adversarial defenses, attack them, and say how robust they really are.

    import robustbench_defenses as rrd

    run = rrd.train("aicr", dataset="digits")
    result = rrd.evaluate(run, attack="pgd", eps=[0, 0.1, 0.2])
    result.curve, result.auc, result.frame()
    model = rrd.load("last")
    adversarial = rrd.attack(model, images, labels, "pgd", eps=0.1)

The functions here are the whole public interface; the command `rrd` offers the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .evaluation.images import Attacked
    from .evaluation.schema import Result
    from .training.runs import Run

__version__ = "0.1.0"
__all__ = ["attack", "evaluate", "load", "train"]


def train(
    defense: str,
    dataset: str,
    model: str | None = None,
    *,
    preset: str = "quick",
    results: str | Path = "results",
    **options: Any,
) -> Run:
    """Train a defense on a data set, or return the stored run of the same question.

    Further options: `variant`, `seed`, `settings` (a mapping, as `--set`), `epochs`, `limit_train`,
    `data_dir`, `device`, `precision`, `threads`, `fresh`, `progress`. Raises `UserError`.
    """
    from .training.train import train as train_

    return train_(defense, dataset, model, preset=preset, results_dir=results, **options)


def evaluate(
    subject: str | Run | nn.Module,
    attack: str = "pgd",
    *,
    eps: Sequence[float] | float | None = None,
    settings: Mapping[str, object] | None = None,
    results: str | Path = "results",
    **options: Any,
) -> Result:
    """Robust accuracy of a subject under one attack, stored and returned.

    `subject`: a run, what the command line calls a SUBJECT, or a module from images (N, C, H, W) in
    [0, 1] to logits (N, K) (then `dataset` is needed); `eps` in pixel units, None: the published
    grid. Further options: `dataset`, `norm`, `n`, `sweep`, `targeted`, `view`, `subset`, `seed`,
    `device`, `precision`, `batch_size`, `threads`, `data_dir`, `fresh`, `progress`.
    Raises `UserError`.
    """
    from .evaluation.run import evaluate as evaluate_

    (answer,) = evaluate_(
        _subject(subject),
        [attack],
        eps=eps,
        settings={"": dict(settings or {})},
        results_dir=Path(results),
        **options,
    )
    return answer.stored.result


def load(
    subject: str = "last", *, results: str | Path = "results", device: str = "cpu"
) -> nn.Module:
    """The deployed module of a run, in evaluation mode: images (N, C, H, W) to logits (N, K)."""
    from .training.runs import load_run, parse_subject

    run, checkpoint, options = parse_subject(subject)
    return load_run(run, results).deployed(checkpoint, options).to(device)


def attack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str = "pgd",
    *,
    eps: float | None = None,
    norm: str | None = None,
    target: Tensor | None = None,
    keep: str = "last",
    seed: int = 0,
    **settings: object,
) -> Attacked:
    """Adversarial images (N, C, H, W) of plain tensors, with their verdicts.

    `images` in [0, 1]; `labels`, `target` (N,) int64; `eps` in pixel units; `keep`: `last` or
    `best_loss` iterate; further `settings` are the attack's parameters. Nobody leaves early.
    Minimum-norm attacks need no `eps`; they and ensembles return the nearest images that passed the
    verdict, and last iterates, not `broken`, where they found none. The model's mode, buffers and
    gradients are left as they were. Raises `UserError`.
    """
    from .evaluation.images import attack_tensors

    return attack_tensors(
        model, images, labels, name, eps=eps, norm=norm, target=target, keep=keep, seed=seed,
        settings=settings,
    )  # fmt: skip


def _subject(subject: Any) -> Any:
    from .training.runs import Run

    return str(subject.folder) if isinstance(subject, Run) else subject
