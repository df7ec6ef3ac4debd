"""Randomness by counter: a number is a function of (key, draw, position) and of nothing else.

So a result depends neither on the batch size nor on batch mates, and nothing has to be saved to
go on after an interruption. The mixing function is the 32-bit finaliser "lowbias32" (C. Wellons),
applied to row key and position, in int32 arithmetic that wraps (the same on every device).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

# The odd constants of the hash, as the signed 32-bit numbers with the same bits.
_FIRST, _SECOND, _GOLDEN = 0x21F0AAAD, 0x735A2D97, 0x9E3779B1 - (1 << 32)


def _mix(words: Tensor) -> Tensor:
    """A bijection of int32 words (in place) in which every input bit reaches every output bit."""
    words ^= (words >> 16) & 0xFFFF
    words *= _FIRST
    words ^= (words >> 15) & 0x1FFFF
    words *= _SECOND
    words ^= (words >> 15) & 0x1FFFF
    return words


def name_key(*parts: object) -> int:
    """A 32-bit key for a tuple of names and numbers, equal on every machine."""
    text = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A new key (N,) int32 from `key` (N,) int32 and a number or a tensor (N,) of numbers."""
    if isinstance(value, Tensor):
        value = value.to(torch.int32)
    return _mix(key * _GOLDEN + value + 0x7F4A7C15)


def row_keys(seed: int, name: str, index: Tensor) -> Tensor:
    """Keys (N,) int32 for the examples numbered `index` (N,) under a seed and a name."""
    start = name_key(seed, name)
    start = start - (1 << 32) if start >= 1 << 31 else start
    return fold(torch.full_like(index, start, dtype=torch.int32), index)


def run_keys(seed: int, name: str, index: Tensor, restart: Tensor | int = 0) -> Tensor:
    """Keys (N,) int32 of one run of an attack: by seed, attack, example and restart."""
    return fold(row_keys(seed, name, index), restart)


def uniform(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in [0, 1): (N, *shape), row i a function of `key[i]` alone."""
    count = math.prod(shape)
    position = torch.arange(count, device=key.device, dtype=torch.int32) * _GOLDEN
    words = _mix(key[:, None] + position)
    words ^= key[:, None]
    words = _mix(words)
    words >>= 8
    words &= 0xFFFFFF
    return (words.to(dtype) * (1.0 / (1 << 24))).view(-1, *shape)


def normal(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers (N, *shape) by Box and Muller's transform on the counter hash."""
    radius = uniform(key, shape, torch.float64 if dtype == torch.float64 else torch.float32)
    angle = uniform(fold(key, 0x5851F42D), shape, radius.dtype)
    # 1 - u lies in (0, 1], so the logarithm is finite.
    return ((-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)).to(dtype)


def integers(key: Tensor, high: Tensor | int) -> Tensor:
    """Integers in [0, high): (N,) int64, one per row."""
    return (uniform(key, (1,), torch.float64)[:, 0] * high).long()
