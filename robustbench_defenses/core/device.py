"""Device, precision and threads: decided by capability, never by a stopwatch."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "tf32")


@dataclass(frozen=True)
class Machine:
    """What a job computes on: `precision` is the resolved class of the search and of training."""

    device: torch.device
    precision: str
    threads: int

    @property
    def autocast(self) -> bool:
        """True where search and training run under bf16 autocast."""
        return self.precision == "bf16"


def machine(device: str = "auto", precision: str = "auto", threads: int | None = None) -> Machine:
    """Resolve the common options; an impossible one is a `UserError`."""
    import torch

    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}", hint=f"one of {', '.join(PRECISIONS)}")
    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads {threads}: at least one thread is needed")
        torch.set_num_threads(threads)
    chosen = _device(device)
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(chosen) else "fp32"
    if chosen.type == "cuda":
        # Verdicts are float32 in the strict sense: TF32 only where it was asked for.
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return Machine(chosen, precision, torch.get_num_threads())


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}", hint="auto, cpu, cuda, cuda:0 or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {name!r} is not here: this torch sees no CUDA device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"device {name!r}: only {torch.cuda.device_count()} CUDA devices here")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UserError("device 'mps' is not here: this torch sees no Metal device")
    elif device.type != "cpu":
        raise UserError(f"unknown device {name!r}", hint="auto, cpu, cuda, cuda:0 or mps")
    return device


@functools.cache
def has_fast_bf16(device: torch.device) -> bool:
    """AMX or AVX512-bf16 on the CPU, compute capability 8.0 and above on CUDA."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False
