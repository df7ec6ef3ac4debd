"""The examples and the threads of one question, for every kind of run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from ..core import registry
from ..core.errors import UserError
from . import examples as choosing
from .examples import Examples
from .foreign import guarded
from .subject import Subject

DEFAULT_N = 1000


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


def examples_of(
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


@contextlib.contextmanager
def threads_kept(count: int | None = None) -> Iterator[None]:
    """Inside, torch has `count` threads (None: as before); afterwards as many as it had."""
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
