"""The on-device loader for training: the whole data set lies there, batches are gathered from it.

What an epoch looks like is a function of (seed, epoch) alone, and what augmentation does to an
image of (seed, epoch, index) alone: an interrupted epoch goes on at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..core import rng
from ..core.errors import UserError, did_you_mean
from .source import Split, take, to_float

Augment = Callable[[Tensor, Tensor], Tensor]
"""(images (B, C, H, W) in [0, 1], keys (B,) int32) -> images of the same shape."""

PADDING = 4


class Loader:
    """Shuffled batches of a split, gathered and augmented on the device.

    `augment`: a name of `AUGMENTS`, a function (`Augment`), or None; `steps`: batches of an epoch.
    The last short batch is left out unless `drop_last` is False. `layout`: of the images.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augment: str | Augment | None = None,
        drop_last: bool = True,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        count = len(split.labels)
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: at least 1 is needed")
        if drop_last and batch_size > count:
            raise UserError(f"batch size {batch_size} is larger than the {count} training images")
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self.steps = count // batch_size if drop_last else -(-count // batch_size)
        self._augment, self._layout = _augment(augment), layout
        # Pixels with their channels side by side: rows gathered from it are channels-last already.
        self._pixels = split.images.permute(0, 2, 3, 1).contiguous().to(self.device)  # (N, H, W, C)
        self._labels = split.labels.to(self.device)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int, start_step: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of epoch `number` from `start_step` on: (images, labels, index).

        `images` (B, C, H, W) float32 in [0, 1]; `labels` (B,) int64; `index` (B,)
        int64: places in the split.
        """
        order = _order(len(self._labels), self.seed, "shuffle", number).to(self.device)
        for step in range(start_step, self.steps):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            images = to_float(self._pixels.index_select(0, index)).permute(0, 3, 1, 2)
            if self._augment is not None:
                images = self._augment(images, rng.row_keys(self.seed, f"augment|{number}", index))
            if self._layout != torch.channels_last:
                # `contiguous` would leave images of one channel as they are, whose strides still
                # say channels-last to a convolution.
                images = images.clone(memory_format=self._layout)
            yield images, self._labels.index_select(0, index), index


def crop_flip(images: Tensor, keys: Tensor) -> Tensor:
    """Random crop after zero padding by 4 pixels, then a horizontal flip of every second image.

    `images` (B, C, H, W); `keys` (B,) int32: each image's offsets and flip are functions of its
    key. The usual augmentation of CIFAR (He et al. 2016, section 4.2).
    """
    count, _, height, width = images.shape
    span = 2 * PADDING + 1
    down, right = (rng.integers(rng.fold(keys, draw), span) - PADDING for draw in (1, 2))
    flip = rng.integers(rng.fold(keys, 3), 2).bool()
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(0), columns) + right[:, None]  # (B, W)
    rows = torch.arange(height, device=images.device) + down[:, None]  # (B, H)
    inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]  # (B, H, W)
    example = torch.arange(count, device=images.device)[:, None, None]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    pixels = images.permute(0, 2, 3, 1)  # (B, H, W, C)
    moved = pixels[example, rows[:, :, None], columns[:, None, :]] * inside[..., None]
    return moved.permute(0, 3, 1, 2)


AUGMENTS: dict[str, Augment] = {"crop_flip": crop_flip}


def split_validation(
    split: Split, count_or_fraction: int | float, seed: int
) -> tuple[Split, Split]:
    """(training, validation): a random part of a training split is held out, the rest is kept.

    `count_or_fraction`: a number of images (int), or a share between 0 and 1 (float). Which images
    is a function of the seed alone; both parts keep the order of the file.
    """
    total = len(split.labels)
    if isinstance(count_or_fraction, float):
        if not 0 < count_or_fraction < 1:
            raise UserError(f"a validation share of {count_or_fraction:g} is not between 0 and 1")
        held = round(count_or_fraction * total)
    else:
        held = count_or_fraction
    if not 0 < held < total:
        raise UserError(f"{held} of {total} training images cannot be held out for validation")
    order = _order(total, seed, "validation")
    return take(split, order[held:].sort().values), take(split, order[:held].sort().values)


def _order(count: int, seed: int, *name: object) -> Tensor:
    """A permutation (count,) int64 on the CPU, a function of seed and name."""
    generator = torch.Generator().manual_seed(rng.name_key(seed, *name))
    return torch.randperm(count, generator=generator)


def _inside(position: Tensor, size: int) -> Tensor:
    return (position >= 0) & (position < size)


def _augment(augment: str | Augment | None) -> Augment | None:
    if not isinstance(augment, str):
        return augment
    if augment not in AUGMENTS:
        known = list(AUGMENTS)
        hint = did_you_mean(augment, known, ", ".join(known))
        raise UserError(f"unknown augmentation {augment!r}", hint=hint)
    return AUGMENTS[augment]
