"""Code of the user's own: what identifies it beside its weights, and how its faults are told."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import Interrupted, UserError
from ..core.identity import file_digest, short_hash
from ..core.registry import ROOT

# How far into a bare callable its tensors are looked for: callable, object, attribute, element.
DEPTH = 4
_PLAIN = (bool, int, float, str, type(None))


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Around calls of a foreign subject: what it raises becomes a `UserError` that names it.

    What it prints goes to stderr: stdout belongs to our answer. An exception that begins in our own
    code stays what it is, a defect of ours.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (UserError, Interrupted, torch.OutOfMemoryError):
        raise
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        if Path(innermost.filename).is_relative_to(ROOT):
            raise
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(f"{name} raises {type(error).__name__}: {said}") from error


def code_digest(deployed: object, file: Path | None) -> str:
    """A hash of what decides the answers of a foreign subject beside its tensors.

    The text of its `file`; of every part of a module its class, that class's source where it is not
    torch's, and its plain attributes. Two networks of equal weights and different forward passes
    are two subjects.
    """
    facts: list[Any] = [file_digest(file) if file is not None else None]
    for path, part in deployed.named_modules() if isinstance(deployed, nn.Module) else ():
        facts.append([path, type(part).__qualname__, _source(type(part)), _attributes(part)])
    return short_hash(facts, 16)


def _source(kind: type) -> str:
    if kind.__module__.partition(".")[0] == "torch":
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # defined where no source is kept
        return ""


def _attributes(part: nn.Module) -> dict[str, str]:
    """The settings of one part: numbers, texts and functions, not its tensors or its mode."""
    return {
        name: _plain(value)
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training"
    }


def _plain(value: Any) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, list | tuple):
        return repr([_plain(item) for item in value])
    if callable(value):
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return type(value).__qualname__


def tensors_of(deployed: object) -> dict[str, Tensor]:
    """Every tensor of a subject by name: a module's state, or what a bare callable can reach.

    A callable is searched through its closure, the globals it names, its defaults, its object's
    attributes and what `functools.partial` holds.
    """
    if isinstance(deployed, nn.Module):
        return dict(deployed.state_dict())
    found: dict[str, Tensor] = {}
    _reach("", deployed, found, set(), DEPTH)
    return found


def _reach(path: str, thing: object, found: dict[str, Tensor], seen: set[int], depth: int) -> None:
    if depth < 0 or id(thing) in seen or isinstance(thing, _PLAIN):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        found[path] = thing
    elif isinstance(thing, nn.Module):
        found.update({f"{path}.{name}": value for name, value in thing.state_dict().items()})
    else:
        for name, value in _inside(thing).items():
            _reach(f"{path}.{name}", value, found, seen, depth - 1)


def _inside(thing: Any) -> dict[str, object]:
    if isinstance(thing, functools.partial):
        return {"func": thing.func, "args": thing.args, "keywords": thing.keywords}
    if inspect.ismethod(thing):
        return {"self": thing.__self__, "func": thing.__func__}
    if inspect.isfunction(thing):
        names = thing.__code__.co_names
        known = {name: thing.__globals__[name] for name in names if name in thing.__globals__}
        cells = zip(thing.__code__.co_freevars, thing.__closure__ or ())
        for name, cell in cells:
            with contextlib.suppress(ValueError):  # a cell that nothing was put into yet
                known[name] = cell.cell_contents
        return known | {"defaults": thing.__defaults__, **(thing.__kwdefaults__ or {})}
    if isinstance(thing, Mapping):
        return {str(key): value for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return {str(position): value for position, value in enumerate(thing[:1000])}
    if inspect.ismodule(thing) or isinstance(thing, type) or inspect.isbuiltin(thing):
        return {}
    attributes: dict[str, object] = dict(getattr(thing, "__dict__", {}))
    return attributes | {"call": inspect.getattr_static(type(thing), "__call__", None)}
