"""Code from outside the package: `FILE.py:NAME`, and the entry points of installed packages."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from . import cache
from .cards import defined_names
from .errors import UserError, did_you_mean

GROUP_PREFIX = "robustbench_defenses."
_REFERENCE = re.compile(r"^(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)$", re.IGNORECASE)
_CACHE = "entry-points-{}.json"


@dataclass(frozen=True)
class Reference:
    """`FILE.py:NAME` taken apart."""

    file: Path
    name: str


@dataclass(frozen=True)
class Installed:
    """One entry point: `object` in `module`, offered by the package `distribution`."""

    name: str
    module: str
    object: str
    distribution: str


def parse_reference(text: str) -> Reference | None:
    """`text` as `FILE.py:NAME`, or None when it is meant as something else.

    A file without a NAME, or another kind of file with one, is a `UserError`.
    """
    match = _REFERENCE.match(text.strip())
    if match:
        return Reference(Path(match["file"]).expanduser(), match["name"])
    if text.strip().lower().endswith((".py", ".py:")):
        file = Path(text.strip().rstrip(":"))
        names = defined_names(file.expanduser())
        known = f" ({file.name} has {', '.join(names)})" if names else ""
        raise UserError(
            f"{text} names a file, but nothing in it",
            hint=f"write FILE.py:NAME, for example {file}:{names[0] if names else 'build'}{known}",
        )
    other = re.match(r"^(?P<file>.+[/\\.].*):(?P<name>[A-Za-z_]\w*)$", text.strip())
    if other and Path(other["file"]).expanduser().is_file():
        raise UserError(
            f"{other['file']} is not a .py file, so {other['name']!r} cannot be read from it",
            hint="FILE.py:NAME runs a Python source file; weights and pickles are never run",
        )
    return None


def load_object(reference: Reference) -> Any:
    """The object that `FILE.py:NAME` names; the file is run as a module of its own.

    A missing file or name, and any exception of the file itself, is a `UserError`.
    """
    module = load_file(reference.file)
    try:
        return getattr(module, reference.name)
    except AttributeError:
        names = defined_names(reference.file)
        raise UserError(
            f"{reference.file} has no {reference.name!r}",
            hint=did_you_mean(reference.name, names, ", ".join(names) or "nothing public in it"),
        ) from None


def load_file(file: Path) -> ModuleType:
    """Run a Python source file once as a module under a unique name; same file, same module.

    What the file prints goes to stderr: stdout belongs to our answer.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file", hint=_near_files(file))
    path = file.resolve()
    stamp = f"{path}|{cache.file_stamp(path)}"
    name = f"rrd_file_{path.stem}_{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{file} is not a Python source file")
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        # Last, as a script's own folder would be first: a neighbour may be imported, and cannot
        # take the place of an installed package.
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        with user_code(file), contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextlib.contextmanager
def user_code(file: Path) -> Iterator[None]:
    """Exceptions inside become a `UserError` with the file, the line and the original message."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}{_line_in(file, error)}: {_said(error)}") from error


def _said(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    first = message.strip().splitlines()[0] if message.strip() else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _line_in(file: Path, error: BaseException) -> str:
    """`, line N`: the last line of `file` that took part in `error`."""
    path = str(file.resolve())
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def _near_files(file: Path) -> str | None:
    folder = file.parent
    if not folder.is_dir():
        return f"there is no folder {folder}"
    names = sorted(entry.name for entry in folder.glob("*.py"))
    return did_you_mean(file.name, names, f"ls {folder}") if names else None


def installed(plural: str) -> list[Installed]:
    """Entry points of the group `robustbench_defenses.<plural>`, sorted by package and name."""
    found = [Installed(*rest) for group, *rest in _entry_points() if group == plural]
    return sorted(found, key=lambda entry: (entry.distribution, entry.name))


def _entry_points() -> list[list[str]]:
    """[group, name, module, object, distribution] of every entry point of ours.

    Looking through all installed packages takes longer than everything else in `rrd list`, so the
    answer is kept for as long as no folder of the search path has changed.
    """
    stamp = [[folder, cache.file_stamp(folder)] for folder in map(os.path.abspath, sys.path)]
    prefix = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    known = cache.read_cache(_CACHE.format(prefix), stamp)
    if "found" in known:
        return list(known["found"])
    from importlib.metadata import distributions

    found = []
    for distribution in distributions():
        for point in distribution.entry_points:
            if point.group.startswith(GROUP_PREFIX):
                # Regular part of `package.module:Class`; extras are of no meaning here.
                module, _, attribute = point.value.partition(":")
                row = [point.group.removeprefix(GROUP_PREFIX), point.name, module.strip()]
                row += [attribute.split("[")[0].strip(), distribution.name]
                if row not in found:
                    found.append(row)
    cache.write_cache(_CACHE.format(prefix), stamp, {"found": found})
    return found


def module_file(module: str) -> Path | None:
    """The source file of `package.module`, without importing either where the layout allows it."""
    package, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for location in spec.submodule_search_locations or []:
        base = os.path.join(location, *rest)
        for candidate in (base + ".py", os.path.join(base, "__init__.py")):
            if os.path.isfile(candidate):
                return Path(candidate)
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # the package's own import may fail in any way
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
