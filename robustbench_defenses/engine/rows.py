"""Selecting and joining rows of (nested) dataclasses of tensors."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def take(record: T, index: Tensor) -> T:
    """The rows `index` (int64) of every tensor of a dataclass, at any depth."""
    changes: dict[str, Any] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = value.index_select(0, index)
        elif is_dataclass(value):
            changes[field.name] = take(value, index)
    return replace(record, **changes)  # type: ignore[type-var]


def join(first: T | None, second: T) -> T:
    """The rows of `first`, then those of `second`."""
    if first is None:
        return second
    changes: dict[str, Any] = {}
    for field in fields(first):  # type: ignore[arg-type]
        value = getattr(first, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = torch.cat([value, getattr(second, field.name)])
        elif is_dataclass(value):
            changes[field.name] = join(value, getattr(second, field.name))
    return replace(first, **changes)  # type: ignore[type-var]


def scatter(parts: list[tuple[Tensor, Tensor]], size: int) -> Tensor:
    """One tensor of `size` rows from (positions, values) pairs that cover every row once."""
    first = parts[0][1]
    result = first.new_empty((size, *first.shape[1:]))
    for positions, values in parts:
        result.index_copy_(0, positions, values)
    return result
