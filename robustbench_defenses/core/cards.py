"""Cards: what a registered file says of itself, read from its source without importing it."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cache
from .settings import check_type

_PACKAGE = Path(__file__).resolve().parents[1]
_CACHE = "cards.json"
_BASIC = {"int", "float", "bool", "str", "None", "Literal", "Optional", "Union", "tuple"}
_TYPING = {"Tuple": "tuple", "Optional": "Optional", "Union": "Union", "Literal": "Literal"}


@dataclass(frozen=True)
class Field:
    """One field of the dataclass: `type` with every alias resolved, `default` as a value."""

    name: str
    type: str
    default: Any = None
    required: bool = False


@dataclass(frozen=True)
class Card:
    """One file: `literal` is its `CARD`, `fields` those of the dataclass it names."""

    path: Path
    doc: str
    literal: dict[str, Any]
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Broken:
    """A file that says it is an entry and cannot be read as one."""

    path: Path
    problem: str


@dataclass
class _Scope:
    """The names of one source file: module-level assignments, classes and from-imports."""

    path: Path
    tree: ast.Module
    assigned: dict[str, ast.expr] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    imported: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)


def read_cards(paths: Iterable[Path]) -> list[Card | Broken]:
    """The cards of those `paths` that have a `CARD`, in order; helpers are left out.

    Parsed files are kept in a small cache by path, modification time and size (their own, and
    those of the files their types come from).
    """
    stamp = [cache.file_stamp(__file__), cache.file_stamp(Path(__file__).with_name("settings.py"))]
    known = cache.read_cache(_CACHE, stamp)
    fresh: dict[str, Any] = {}
    result: list[Card | Broken] = []
    for path in paths:
        stored = known.get(str(path))
        if stored is None or any(cache.file_stamp(p) != s for p, s in stored["files"]):
            parsed, used = _parse(path)
            files = [[str(p), cache.file_stamp(p)] for p in (path, *sorted(used))]
            stored = fresh[str(path)] = {"files": files, "parsed": _pack(parsed)}
        parsed = _unpack(stored["parsed"])
        if parsed is None:
            continue
        if "problem" in parsed:
            result.append(Broken(path, parsed["problem"]))
        else:
            fields = tuple(Field(*entry) for entry in parsed["fields"])
            result.append(Card(path, parsed["doc"], parsed["card"], fields))
    if fresh:
        kept = {name: entry for name, entry in known.items() if Path(name).exists()}
        cache.write_cache(_CACHE, stamp, kept | fresh)
    return result


def read_card(path: Path, name: str | None = None) -> Card | Broken | None:
    """The card of one file, past the cache; with `name`, of that dataclass even without a CARD.

    None: the file has no CARD (no dataclass `name`).
    """
    parsed, _ = _parse(path, name)
    if parsed is None:
        return None
    if "problem" in parsed:
        return Broken(path, parsed["problem"])
    return Card(path, parsed["doc"], parsed["card"], tuple(Field(*f) for f in parsed["fields"]))


def defined_names(path: Path) -> list[str]:
    """Public classes and functions at the top level of a source file; [] if it does not parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")]


def literal(node: ast.expr, scope: dict[str, ast.expr] | None = None) -> Any:
    """The value of a literal expression, arithmetic of numbers included (`8 / 255`).

    `scope`: module-level assignments that a name may stand for. Anything else: `ValueError`.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Tuple):
        return tuple(literal(item, scope) for item in node.elts)
    if isinstance(node, ast.List):
        return [literal(item, scope) for item in node.elts]
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError(f"line {node.lineno}: ** is not a literal")
        pairs = zip(node.keys, node.values, strict=True)
        return {literal(k, scope): literal(v, scope) for k, v in pairs if k is not None}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _numeric(literal(node.operand, scope), node)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = literal(node.left, scope), literal(node.right, scope)
        return _arithmetic(node, _numeric(left, node), _numeric(right, node))
    if isinstance(node, ast.Name) and scope and node.id in scope:
        without = {name: value for name, value in scope.items() if name != node.id}
        return literal(scope[node.id], without)
    raise ValueError(f"line {node.lineno}: {ast.unparse(node)!r} is not a literal")


def _numeric(value: Any, node: ast.expr) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)!r} is not a literal")
    return value


def _arithmetic(node: ast.BinOp, left: Any, right: Any) -> Any:
    try:
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
    except ZeroDivisionError:
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)!r} divides by zero") from None
    raise ValueError(f"line {node.lineno}: {ast.unparse(node)!r} is not a literal")


def _parse(path: Path, name: str | None = None) -> tuple[dict[str, Any] | None, set[Path]]:
    """What `path` says, as plain data (`problem` instead when it cannot be read), and the other
    files that decided it."""
    scope: _Scope | None = None
    try:
        source = path.read_bytes()
        if name is None and b"CARD" not in source:
            return None, set()
        scope = _scope(path, ast.parse(source))
        return _read(scope, name), scope.used
    except SyntaxError as error:
        return {"problem": f"line {error.lineno}: {error.msg}"}, set()
    except OSError as error:
        return {"problem": f"cannot be read: {error.strerror}"}, set()
    except ValueError as error:
        return {"problem": str(error)}, scope.used if scope else set()


def _scope(path: Path, tree: ast.Module) -> _Scope:
    scope = _Scope(path, tree)
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    scope.assigned[target.id] = node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            if isinstance(node.target, ast.Name):
                scope.assigned[node.target.id] = node.value
        elif isinstance(node, ast.ClassDef):
            scope.classes[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                origin = (node.level, node.module or "", alias.name)
                scope.imported[alias.asname or alias.name] = origin
    return scope


def _read(scope: _Scope, name: str | None) -> dict[str, Any] | None:
    doc = ast.get_docstring(scope.tree) or ""
    card: Any = {}
    if "CARD" in scope.assigned:
        try:
            card = literal(scope.assigned["CARD"], None)
        except ValueError as error:
            raise ValueError(f"CARD is not a literal ({error})") from None
        if not isinstance(card, dict):
            raise ValueError("CARD is not a dictionary")
    elif name is None:
        return None
    if name is not None and card.get("object") != name:
        card = {"object": name, "version": 1}
        if name in scope.classes:
            doc = ast.get_docstring(scope.classes[name]) or doc
    wanted = card.get("object")
    if wanted not in scope.classes:
        if name is not None:
            return None
        raise ValueError(f"CARD['object'] is {wanted!r}: no such class in this file")
    fields = [
        [f.name, f.type, f.default, f.required] for f in _fields(scope.classes[wanted], scope)
    ]
    _check_card(card, [entry[0] for entry in fields])
    return {"doc": doc, "card": card, "fields": fields}


def _check_card(card: dict[str, Any], names: list[str]) -> None:
    version = card.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError("CARD['version'] must be a whole number, 1 or more")
    for key in ("aliases", "retired"):
        value = card.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"CARD[{key!r}] must be a list of names")
    for key in ("params", "variants"):
        value = card.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise ValueError(f"CARD[{key!r}] must map names to dictionaries")
    for key in card.get("params", {}):
        if key not in names:
            raise ValueError(f"CARD['params'] describes {key!r}: no such parameter")
    for variant, content in card.get("variants", {}).items():
        for key in content.get("set", {}):
            if key not in names:
                raise ValueError(f"variant {variant!r} sets {key!r}: no such parameter")


def _fields(node: ast.ClassDef, scope: _Scope) -> Iterator[Field]:
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        annotation = ast.unparse(statement.annotation)
        if "ClassVar" in annotation or annotation.endswith("KW_ONLY"):
            continue
        name, value = statement.target.id, statement.value
        if isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] == "field":
            options = {keyword.arg: keyword.value for keyword in value.keywords}
            if "init" in options and not literal(options["init"]):
                continue
            value = options.get("default", options.get("default_factory"))
            if isinstance(value, ast.Name) and value.id in ("tuple", "list"):
                value = ast.copy_location(ast.Tuple(elts=[], ctx=ast.Load()), value)
        kind = _resolve(statement.annotation, scope)
        try:
            check_type(kind)
            default = None if value is None else literal(value, scope.assigned)
        except ValueError as error:
            raise ValueError(f"parameter {name!r}: {error}") from None
        yield Field(name, ast.unparse(kind), default, required=value is None)


def _resolve(node: ast.expr, scope: _Scope, depth: int = 0) -> ast.expr:
    """`node` with the names of types replaced by what they stand for, across our own files."""
    if depth > 8:
        return node
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _resolve(ast.parse(node.value, mode="eval").body, scope, depth + 1)
    if isinstance(node, ast.Attribute):
        return ast.Name(id=_TYPING.get(node.attr, node.attr), ctx=ast.Load())
    if isinstance(node, ast.BinOp):
        left, right = _resolve(node.left, scope, depth), _resolve(node.right, scope, depth)
        return ast.BinOp(left=left, op=node.op, right=right)
    if isinstance(node, ast.Tuple):
        return ast.Tuple(elts=[_resolve(n, scope, depth) for n in node.elts], ctx=ast.Load())
    if isinstance(node, ast.Subscript):
        value = _resolve(node.value, scope, depth)
        is_literal = isinstance(value, ast.Name) and value.id == "Literal"
        inner = node.slice if is_literal else _resolve(node.slice, scope, depth)
        return ast.Subscript(value=value, slice=inner, ctx=ast.Load())
    if isinstance(node, ast.Name) and node.id not in _BASIC:
        if node.id in _TYPING:
            return ast.Name(id=_TYPING[node.id], ctx=ast.Load())
        if node.id in scope.assigned:
            return _resolve(scope.assigned[node.id], scope, depth + 1)
        if node.id in scope.imported:
            return _imported_type(node, scope, depth)
    return node


def _imported_type(node: ast.Name, scope: _Scope, depth: int) -> ast.expr:
    """A type that `from MODULE import NAME` brings: read where it is written."""
    level, module, name = scope.imported[node.id]
    parts = module.split(".") if module else []
    if level:
        folder = scope.path.parents[level - 1]
    elif parts and parts[0] == _PACKAGE.name:
        folder, parts = _PACKAGE, parts[1:]
    else:
        return ast.Name(id=_TYPING.get(name, name), ctx=ast.Load())
    path = folder.joinpath(*parts).with_suffix(".py")
    if not path.is_file():
        return node
    other = _scope(path, ast.parse(path.read_bytes()))
    found = _resolve(ast.Name(id=name, ctx=ast.Load()), other, depth + 1)
    scope.used |= {path, *other.used}
    return found


def _pack(value: Any) -> Any:
    """`value` in JSON's terms; tuples, number keys and infinities survive the way back."""
    if isinstance(value, tuple):
        return {"()": [_pack(item) for item in value]}
    if isinstance(value, list):
        return [_pack(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in ("()", "{}", "x") for key in value):
            return {key: _pack(item) for key, item in value.items()}
        return {"{}": [[_pack(key), _pack(item)] for key, item in value.items()]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"x": repr(value)}
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    if isinstance(value, dict):
        if "()" in value:
            return tuple(_unpack(item) for item in value["()"])
        if "{}" in value:
            return {_unpack(key): _unpack(item) for key, item in value["{}"]}
        if "x" in value:
            return float(value["x"])
        return {key: _unpack(item) for key, item in value.items()}
    return value
