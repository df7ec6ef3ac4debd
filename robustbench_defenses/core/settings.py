"""Parameters of registered entries: their types as written in the source, and values that fit them.

A type is kept as text with every alias resolved: `int`, `float`, `bool`, `str`,
`Literal['linf', 'l2']`, `int | None`, `tuple[float, ...]`, `tuple[int, int]`.
"""

from __future__ import annotations

import ast
import functools
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from .errors import UserError

_WORDS = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "None": "none",
}


@dataclass(frozen=True)
class Param:
    """One parameter of an entry: what `rrd info` shows and `--set` accepts."""

    name: str
    type: str
    default: Any = None
    unit: str = ""
    help: str = ""
    papers: dict[str, Any] | None = None
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False

    @property
    def shown_type(self) -> str:
        """The type in the words of a user: choices as `linf | l2`, the rest as written."""
        return " | ".join(_shown(member) for member in members(_parsed(self.type)))

    def document(self) -> dict[str, Any]:
        """The parameter in JSON's terms."""
        return {
            "name": self.name,
            "type": self.type,
            "default": plain(self.default),
            "required": self.required,
            "unit": self.unit,
            "help": self.help,
            "papers": plain(self.papers or {}),
            "min": self.minimum,
            "max": self.maximum,
        }

    def fit(self, value: object, owner: str) -> Any:
        """`value` (text is converted) if it fits type and range, else a `UserError`."""
        try:
            result = _convert(value, _parsed(self.type))
        except ValueError:
            raise UserError(
                f"{owner}: {self.name}={shown(value)} is not {expected(_parsed(self.type))}"
            ) from None
        for number in result if isinstance(result, tuple) else (result,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if self.minimum is not None and number < self.minimum:
                raise UserError(
                    f"{owner}: {self.name}={shown(value)} is below the smallest allowed value "
                    f"{self.minimum:g}"
                )
            if self.maximum is not None and number > self.maximum:
                raise UserError(
                    f"{owner}: {self.name}={shown(value)} is above the largest allowed value "
                    f"{self.maximum:g}"
                )
        return result


def shown(value: object) -> str:
    """A value as a user would write it after `KEY=`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if float(f"{value:g}") == value or not math.isfinite(value):
            return f"{value:g}"
        # What is no short decimal may be a simple share, or a number of grey levels.
        parts = [(round(value * whole), whole) for whole in (3, 6, 255)]
        return next((f"{n}/{whole}" for n, whole in parts if n / whole == value), repr(value))
    if isinstance(value, list | tuple):
        return ",".join(shown(item) for item in value)
    return str(value)


def plain(value: Any) -> Any:
    """`value` in JSON's terms: infinities and keys as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def check_type(node: ast.expr) -> None:
    """`ValueError` naming the part of a type that `--set` could not fill."""
    for member in members(node):
        if isinstance(member, ast.Constant) and member.value is None:
            continue
        if isinstance(member, ast.Name) and member.id in _EXPECTED:
            continue
        if isinstance(member, ast.Subscript) and isinstance(member.value, ast.Name):
            if member.value.id == "Literal" and _choices(member):
                continue
            if member.value.id == "tuple":
                for item in _items(member)[0]:
                    check_type(item)
                continue
        raise ValueError(
            f"type {ast.unparse(member)!r} is none of int, float, bool, str, Literal[...], "
            "tuple[...] or None"
        )


def members(node: ast.expr) -> list[ast.expr]:
    """The alternatives of a union, `[node]` for anything else."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return members(node.left) + members(node.right)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id == "Optional":
            return [*members(node.slice), ast.Constant(value=None)]
        if node.value.id == "Union":
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return [member for part in parts for member in members(part)]
    return [node]


def expected(node: ast.expr) -> str:
    """What a value must be, in words: `a whole number or none`."""
    words = []
    for member in members(node):
        if isinstance(member, ast.Subscript):
            choices = _choices(member)
            if choices:
                words.append(f"one of {', '.join(str(choice) for choice in choices)}")
            else:
                kinds, endless = _items(member)
                inner = [expected(kind) for kind in kinds]
                what = f"each {inner[0]}" if endless else ", ".join(inner)
                words.append(f"a comma list ({what})")
        else:
            words.append(_EXPECTED[ast.unparse(member)])
    return " or ".join(words)


@functools.lru_cache(maxsize=512)
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _shown(member: ast.expr) -> str:
    choices = _choices(member) if isinstance(member, ast.Subscript) else []
    if choices:
        return " | ".join(str(choice) for choice in choices)
    return ast.unparse(member).replace("None", "none")


def _choices(member: ast.Subscript) -> list[Any]:
    if not (isinstance(member.value, ast.Name) and member.value.id == "Literal"):
        return []
    parts = member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice]
    return [part.value for part in parts if isinstance(part, ast.Constant)]


def _items(member: ast.Subscript) -> tuple[list[ast.expr], bool]:
    """The types of a tuple's items, and whether the one type repeats (`tuple[X, ...]`)."""
    parts = member.slice.elts if isinstance(member.slice, ast.Tuple) else [member.slice]
    endless = isinstance(parts[-1], ast.Constant) and parts[-1].value is Ellipsis
    return (list(parts[:-1]) if endless else list(parts)), endless


def _convert(value: object, node: ast.expr) -> Any:
    """`value` as the first alternative of `node` that takes it; `ValueError` when none does."""
    # None first: the text "none" must not be taken by an alternative `str`.
    options = sorted(members(node), key=lambda member: not _is_none(member))
    for member in options:
        try:
            return _convert_one(value, member)
        except ValueError:
            continue
    raise ValueError


def _is_none(member: ast.expr) -> bool:
    return isinstance(member, ast.Constant) and member.value is None


def _convert_one(value: object, member: ast.expr) -> Any:
    if isinstance(member, ast.Subscript):
        choices = _choices(member)
        return _choice(value, choices) if choices else _tuple(value, member)
    kind = ast.unparse(member)
    if kind == "None":
        if value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null")):
            return None
        raise ValueError
    if kind == "bool":
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().lower() in _WORDS:
            return _WORDS[value.strip().lower()]
        raise ValueError
    if kind == "str":
        if isinstance(value, str):
            return value
        raise ValueError
    return _integer(value) if kind == "int" else _number(value)


def _integer(value: object) -> int:
    # numbers.Integral and numbers.Real: numpy's scalars are welcome too.
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | str):
        raise ValueError
    return int(value)


def _number(value: object) -> float:
    if isinstance(value, str):
        try:
            number = float(Fraction(value.strip())) if "/" in value else float(value)
        except (ZeroDivisionError, OverflowError):
            raise ValueError from None
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError
    else:
        number = float(value)
    if math.isnan(number):
        raise ValueError
    return number


def _choice(value: object, choices: list[Any]) -> Any:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    if isinstance(value, str):
        for choice in choices:
            if str(choice).lower() == value.strip().lower():
                return choice
    raise ValueError


def _tuple(value: object, member: ast.Subscript) -> tuple[Any, ...]:
    kinds, endless = _items(member)
    parts: Sequence[object]
    if isinstance(value, str):
        text = value.strip().strip("()[]").strip().rstrip(",")
        parts = [part.strip() for part in text.split(",")] if text else []
    elif isinstance(value, list | tuple):
        parts = value
    else:
        raise ValueError
    if not endless and len(parts) != len(kinds):
        raise ValueError
    types = kinds * len(parts) if endless else kinds
    return tuple(_convert(part, kind) for part, kind in zip(parts, types, strict=True))
