"""Which test examples a question is about, and where a targeted attack wants them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import rng
from ..core.errors import UserError
from ..data import source

if TYPE_CHECKING:
    from .subject import Subject


@dataclass(frozen=True)
class Examples:
    """`images` (N, C, H, W) float32 in [0, 1]; `labels`, `index` (N,) int64; digest of the file."""

    images: Tensor
    labels: Tensor
    index: Tensor
    info: source.DataInfo
    digest: str
    subset: str

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, n: int | None) -> Examples:
        """The first `n` of them (None: all)."""
        return self.pick(torch.arange(len(self))[:n])

    def pick(self, index: Tensor) -> Examples:
        """Those at the positions `index` (M,)."""
        index = index.to(self.labels.device)
        return replace(
            self, images=self.images[index], labels=self.labels[index], index=self.index[index]
        )


def load(
    dataset: str, n: int | None, subset: str, data_dir: Path | None, device: torch.device
) -> Examples:
    """The first `n` test examples of `dataset` (None: all), chosen as `subset` says."""
    if n is not None and n < 1:
        raise UserError(f"-n {n}: at least one example is needed")
    info = source.describe(dataset, data_dir)
    split = source.load(dataset, "test", data_dir)
    index = _chosen(subset, len(split.labels))
    if len(index) == 0 or (n is not None and n > len(index) and subset != "correct"):
        raise UserError(f"-n {n or 'all'}: {dataset} has only {len(index)} such test examples")
    if subset != "correct":
        index = index[:n]
    return Examples(
        source.to_float(split.images[index]).to(device),
        split.labels[index].to(device),
        index.to(device),
        info,
        split.digest,
        subset,
    )


def _chosen(subset: str, count: int) -> Tensor:
    kind, _, rest = subset.partition(":")
    if kind in ("first", "correct") and not rest:
        return torch.arange(count)
    if kind == "random" and rest.isdecimal():
        order = rng.uniform(rng.row_keys(int(rest), "subset", torch.arange(count)), (1,))
        return order[:, 0].argsort()
    if kind == "fold" and rest.isdecimal() and int(rest) < 10:
        return (torch.arange(count) % 10 == int(rest)).nonzero()[:, 0]
    raise UserError(
        f"unknown subset {subset!r}", hint="first, random:SEED, correct, or fold:K (K from 0 to 9)"
    )


def only_correct(examples: Examples, subject: Subject, n: int | None) -> Examples:
    """The first `n` examples (in file order) that the subject classifies correctly."""
    from ..engine.caller import Cost
    from ..engine.verdict import Judge, evaluation_mode

    judge = Judge(subject.deployed, subject.name, examples.index, Cost())
    everyone = torch.arange(len(examples), device=examples.labels.device)
    with evaluation_mode(subject.deployed):
        right = judge.logits(examples.images, everyone).argmax(1) == examples.labels
    index = right.nonzero()[:, 0]
    if len(index) == 0:
        raise UserError(f"{subject.name} classifies no example correctly: nothing to attack")
    if n is not None and n > len(index):
        raise UserError(
            f"-n {n}: {subject.name} classifies only {len(index)} test examples correctly",
            hint="-n all takes these",
        )
    return examples.pick(index[:n])


def targets(examples: Examples, classes: int, seed: int) -> Tensor:
    """A wanted class (N,) per example for targeted attacks: uniform among the wrong ones."""
    keys = rng.row_keys(seed, "target", examples.index)
    return (examples.labels + 1 + rng.integers(keys, classes - 1)) % classes
