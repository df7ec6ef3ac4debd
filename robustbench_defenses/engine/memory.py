"""Memory that does not suffice: what says so, and questions in parts that fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .ask import assembled
from .protocol import Answer, Query, Rows
from .rows import take


def out_of_memory(error: Exception) -> bool:
    """True where a smaller batch may help; the CPU's allocator raises a plain `RuntimeError`."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def in_parts(
    call: Callable[[Query, Rows, int], Answer], query: Query, rows: Rows, size: int
) -> tuple[Answer, int | None]:
    """The answer to `query` by calls of at most `size` rows; `call` is told where a part begins.

    When the memory does not suffice the parts are halved; then the size that did is returned too.
    """
    count, smaller = len(query.points), None
    size = min(count, size)
    while True:
        try:
            if size >= count:
                return call(query, rows, 0), smaller
            parts = []
            everyone = torch.arange(count, device=query.points.device)
            for start in range(0, count, size):
                chunk = everyone[start : start + size]
                parts.append((chunk, call(take(query, chunk), take(rows, chunk), start)))
            return assembled(parts, count), smaller
        except Exception as error:
            if size <= 1 or not out_of_memory(error):
                raise
            size = smaller = max(1, size // 2)
