"""Weights as safetensors: every trained part in one flat file, `<part>.<tensor>`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..core import files
from ..core.errors import UserError

FORMAT = "rrd.weights/1"


def flatten(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of all parts by `<part>.<tensor>`, on the CPU, contiguous, none shared."""
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }


def save(path: Path, parts: Mapping[str, nn.Module], metadata: Mapping[str, str]) -> None:
    """Write all parts to `path` atomically."""
    save_tensors(path, flatten(parts), {"format": FORMAT, **metadata})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors to `path` atomically; equal contents give equal bytes."""
    import safetensors.torch

    # The format keeps metadata in no particular order: one entry has only one.
    header = {"rrd": json.dumps(metadata, sort_keys=True)}
    files.write_bytes(path, safetensors.torch.save(tensors, header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a weights file; anything but a whole safetensors file is refused."""
    import safetensors
    import safetensors.torch

    try:
        with open(path, "rb") as handle:
            head = handle.read(9)  # safetensors: the length of a JSON object, and its brace
    except FileNotFoundError:
        raise UserError(f"there are no weights at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if head[8:] != b"{" and (head[:1] == b"\x80" or head[:2] == b"PK"):
        raise UserError(
            f"{path} is a pickle, not safetensors; it is not opened, for it could run any code",
            hint="weights of your own: give the network as FILE.py:FACTORY",
        )
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            metadata = json.loads((opened.metadata() or {}).get("rrd", "{}"))
            names = list(opened.keys())
            return {name: opened.get_tensor(name) for name in names}, metadata
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error})") from None


def fill(parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into the parts; missing, surplus or misshapen ones are a `UserError`."""
    for part, module in parts.items():
        own = module.state_dict()
        wanted = {f"{part}.{name}" for name in own}
        given = {name for name in tensors if name.startswith(f"{part}.")}
        for name in sorted(wanted ^ given):
            state = "lacks" if name in wanted else "has a surplus"
            raise UserError(f"{source} does not fit the network: it {state} tensor {name!r}")
        for name, tensor in own.items():
            loaded = tensors[f"{part}.{name}"]
            if loaded.shape != tensor.shape:
                raise UserError(
                    f"{source} does not fit the network: {part}.{name} is "
                    f"{tuple(loaded.shape)}, not {tuple(tensor.shape)}"
                )
        module.load_state_dict({name: tensors[f"{part}.{name}"] for name in own})
