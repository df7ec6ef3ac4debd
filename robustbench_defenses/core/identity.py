"""Identity: equal questions have equal keys, on every machine."""

from __future__ import annotations

import hashlib
import json
import math
import numbers
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def canonical(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces; equal numbers give equal text."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {str(key): plain(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [plain(entry) for entry in item]
        if isinstance(item, bool) or item is None or isinstance(item, str):
            return item
        if isinstance(item, numbers.Integral):  # numpy's integers too
            return int(item)
        if isinstance(item, numbers.Real):
            value = float(item)
            if not math.isfinite(value):
                return repr(value)
            return int(value) if value.is_integer() else value
        return str(item)

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(value: Any, length: int = 8) -> str:
    """The first `length` hex digits of the SHA-256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `tensors`, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(dtype=_BYTES()).numpy().tobytes())
    return digest.hexdigest()


def _BYTES() -> torch.dtype:  # noqa: N802
    import torch

    return torch.uint8
