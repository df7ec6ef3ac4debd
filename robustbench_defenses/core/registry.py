"""The registry: every data set, model, defense, attack and measure, without importing any of them.

One file is one entry (with variants, a family); its `CARD` and the fields of its dataclass are
read from the source. Wherever a name is accepted, `FILE.py:NAME` is too, and installed packages
add entries through the entry-point groups `robustbench_defenses.<kind>s`.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import plugins
from .cards import Broken, Card, read_card, read_cards
from .errors import Notice, UserError, did_you_mean
from .settings import Param, plain

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT.name

KINDS: dict[str, str] = {
    "dataset": "data",
    "model": "models",
    "defense": "defenses",
    "attack": "attacks",
    "measure": "evaluation/measures",
}
_OWN_KEYS = {"object", "name", "version", "source", "aliases", "retired", "params", "variants"}


@dataclass(frozen=True)
class Entry:
    """One registered name: a file's own entry, one of its variants, or a `FILE.py:NAME`.

    `card`: the file's CARD (a variant's own keys laid over it); `family`: the name of the file's
    own entry; `origin`: "rrd", the installed package, or the file the user named.
    """

    kind: str
    name: str
    summary: str
    doc: str
    card: Mapping[str, Any] = field(compare=False, repr=False)
    params: tuple[Param, ...] = field(compare=False, repr=False)
    version: int
    source_file: Path
    aliases: tuple[str, ...]
    object_name: str
    family: str
    module: str | None = None
    origin: str = "rrd"
    retired: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The paper and equation the entry comes from."""
        return str(self.card.get("source", ""))

    @property
    def extra(self) -> dict[str, Any]:
        """The CARD's further keys: data sets' shapes and grids, defenses' presets, costs, ..."""
        return {key: value for key, value in self.card.items() if key not in _OWN_KEYS}

    def defaults(self) -> dict[str, Any]:
        """The parameters that have a default, at this entry's (variant's) values."""
        return {param.name: param.default for param in self.params if not param.required}

    def settings(self, overrides: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Every parameter, typed and checked; texts are converted by the parameter's type.

        An unknown name, a value of the wrong type or out of range, a missing one: `UserError`.
        """
        known = {param.name: param for param in self.params}
        result = self.defaults()
        for key, value in (overrides or {}).items():
            name = key.strip().replace("-", "_")
            if name not in known:
                raise UserError(
                    f"{self.name} has no parameter {key!r}",
                    hint=did_you_mean(name, list(known), f"rrd info {self.name}"),
                )
            result[name] = known[name].fit(value, self.name)
        for param in self.params:
            if param.name not in result:
                raise UserError(
                    f"{self.name} needs a value for {param.name!r}",
                    hint=f"--set {param.name}=VALUE; all: rrd info {self.name}",
                )
        return {name: result[name] for name in known}

    def changed(self, settings: Mapping[str, object]) -> dict[str, Any]:
        """Only those of `settings` that differ from this entry's defaults (for identities)."""
        full = self.settings(settings)
        defaults = self.defaults()
        return {k: v for k, v in full.items() if k not in defaults or defaults[k] != v}

    def load(self) -> Any:
        """The entry's object itself (the dataclass, or a model's function): imports its module."""
        if self.module is None:
            return plugins.load_object(plugins.Reference(self.source_file, self.object_name))
        if self.origin == "rrd":
            return getattr(importlib.import_module(self.module), self.object_name)
        with plugins.user_code(self.source_file):
            return getattr(importlib.import_module(self.module), self.object_name)

    def create(self, **settings: object) -> Any:
        """Build the dataclass with checked `settings`.

        A model given as a function `(shape, classes) -> nn.Module` comes as an object with `build`.
        """
        loaded = self.load()
        if self.card.get("callable"):
            return Builder(loaded)
        values = self.settings(settings)
        if self.origin == "rrd":
            return loaded(**values)
        with plugins.user_code(self.source_file):
            return loaded(**values)

    def document(self) -> dict[str, Any]:
        """The entry in JSON's terms: what `rrd list --json` and `rrd info --json` print."""
        return {
            "kind": self.kind,
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
            "version": self.version,
            "aliases": list(self.aliases),
            "family": self.family,
            "variants": list(self.variants),
            "origin": self.origin,
            "file": str(self.source_file),
            "doc": self.doc,
            "params": [param.document() for param in self.params],
            **plain(self.extra),
        }


@dataclass(frozen=True)
class Builder:
    """A model given as a bare callable `(shape, classes) -> nn.Module`."""

    function: Any

    def build(self, shape: tuple[int, int, int], classes: int) -> Any:
        """The network for images of `shape` (C, H, W) and `classes` classes."""
        return self.function(shape, classes)


@dataclass(frozen=True)
class Scan:
    """All entries of one kind that can be read, and one sentence for each thing that is wrong."""

    entries: list[Entry]
    problems: list[str]


def entries(kind: str, root: Path = ROOT) -> list[Entry]:
    """Every entry of a kind, ours first, then installed packages'; each family by its variants.

    A file that cannot be read, and a name that two entries claim, is a `UserError` that names it.
    """
    found = scan(kind, root)
    if found.problems:
        raise UserError("; ".join(found.problems))
    return found.entries


def scan(kind: str, root: Path = ROOT) -> Scan:
    """Like `entries`, but what cannot be read is told beside what can."""
    folder = root / _folder(kind)
    paths = sorted(p for p in folder.glob("*.py") if not p.name.startswith("_"))
    result: list[Entry] = []
    problems: list[str] = []
    for card in read_cards(paths):
        module = None
        if root == ROOT:
            module = ".".join([PACKAGE, *KINDS[kind].split("/"), card.path.stem])
        result += _accept(kind, card, problems, module=module)
    if root == ROOT:
        for point in plugins.installed(f"{kind}s"):
            result += _from_package(kind, point, problems)
    for name, claims in _index(result).items():
        if len(claims) > 1:
            files = " and ".join(str(claim.source_file) for claim in claims)
            problems.append(f"the {kind} name {name!r} is claimed twice: by {files}")
    return Scan(result, problems)


def find(kind: str, name: str, root: Path = ROOT) -> Entry:
    """The entry of a name, an alias, a variant, a retired name or `FILE.py:NAME`.

    Case and hyphens do not matter. Unknown or ambiguous: `UserError` with near names.
    """
    reference = plugins.parse_reference(name)
    if reference is not None:
        return _from_file(kind, reference, name.strip())
    found = scan(kind, root)
    claims = _claims(found, name)
    if len(claims) > 1:
        files = " and ".join(str(claim.source_file) for claim in claims)
        raise UserError(f"the {kind} name {name!r} is claimed twice: by {files}")
    if claims:
        return _noticed(claims[0], name)
    known = sorted(_index(found.entries))
    broken = f" ({'; '.join(found.problems)})" if found.problems else ""
    raise UserError(
        f"unknown {kind} {name!r}{broken}",
        hint=did_you_mean(normal(name), known, f"rrd list {kind}s"),
    )


def find_any(name: str, root: Path = ROOT) -> Entry:
    """The entry of a name, whatever its kind; `KIND:NAME` where two kinds share the name."""
    prefix, _, rest = name.partition(":")
    if rest and prefix.strip().lower().removesuffix("s") in KINDS:
        return find(prefix.strip().lower().removesuffix("s"), rest, root)
    reference = plugins.parse_reference(name)
    if reference is not None:
        return _from_file("object", reference, name.strip())
    scans = {kind: scan(kind, root) for kind in KINDS}
    claims = [claim for found in scans.values() for claim in _claims(found, name)]
    if len(claims) == 1:
        return _noticed(claims[0], name)
    if claims:
        raise UserError(
            f"{name!r} names {len(claims)} things",
            hint=" or ".join(f"{claim.kind}:{claim.name}" for claim in claims),
        )
    known = sorted({known for found in scans.values() for known in _index(found.entries)})
    problems = [problem for found in scans.values() for problem in found.problems]
    raise UserError(
        f"nothing is called {name!r}" + (f" ({'; '.join(problems)})" if problems else ""),
        hint=did_you_mean(normal(name), known, "rrd list " + "|".join(f"{k}s" for k in KINDS)),
    )


def normal(name: str) -> str:
    """A name as the registry compares it: lower case, underscores."""
    return "_".join(name.strip().lower().replace("-", " ").split())


def _folder(kind: str) -> str:
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}", hint=f"one of {', '.join(KINDS)}")
    return KINDS[kind]


def _index(found: list[Entry]) -> dict[str, list[Entry]]:
    """Every name that leads to an entry -> the entries that claim it (more than one: an error)."""
    index: dict[str, list[Entry]] = defaultdict(list)
    for entry in found:
        for name in {normal(n) for n in (entry.name, *entry.aliases, *entry.retired)}:
            index[name].append(entry)
    return index


def _claims(found: Scan, name: str) -> list[Entry]:
    claims = _index(found.entries).get(normal(name), [])
    prefix, colon, _ = name.partition(":")
    if not claims and colon:
        # `npz:FILE`: an entry that takes the rest of the text as its argument.
        claims = [e for e in found.entries if e.card.get("prefix") == prefix.strip().lower()]
    return claims


def _noticed(entry: Entry, name: str) -> Entry:
    if normal(name) in {normal(retired) for retired in entry.retired}:
        import warnings

        warnings.warn(f"{name} is now called {entry.name}", Notice, stacklevel=3)
    return entry


def _accept(kind: str, card: Card | Broken, problems: list[str], **about: Any) -> list[Entry]:
    """The entries of a card: its own, then one per variant."""
    if isinstance(card, Broken):
        problems.append(f"{card.path} is not a readable {kind}: {card.problem}")
        return []
    try:
        return _build(kind, card, **about)
    except UserError as error:
        problems.append(f"{card.path} is not a readable {kind}: {error.message}")
        return []


def _build(
    kind: str, card: Card, *, module: str | None, name: str | None = None, origin: str = "rrd"
) -> list[Entry]:
    literal = card.literal
    name = name or str(literal.get("name", card.path.stem))
    summary, _, rest = card.doc.partition("\n")
    variants: dict[str, dict[str, Any]] = literal.get("variants", {})
    params = tuple(_param(f, literal.get("params", {}).get(f.name, {}), name) for f in card.fields)
    base = Entry(
        kind=kind,
        name=name,
        summary=summary.strip().rstrip("."),
        doc=rest.strip("\n"),
        card={key: value for key, value in literal.items() if key != "variants"},
        params=params,
        version=literal["version"],
        source_file=card.path,
        aliases=tuple(literal.get("aliases", ())),
        retired=tuple(literal.get("retired", ())),
        variants=tuple(variants),
        object_name=literal["object"],
        family=name,
        module=module,
        origin=origin,
    )
    return [base, *(_variant(base, own, content) for own, content in variants.items())]


def _variant(base: Entry, name: str, content: Mapping[str, Any]) -> Entry:
    values = content.get("set", {})
    params = tuple(
        replace(p, default=p.fit(values[p.name], name), required=False) if p.name in values else p
        for p in base.params
    )
    own = {key: value for key, value in content.items() if key not in ("set", "summary")}
    return replace(
        base,
        name=name,
        summary=str(content.get("summary", base.summary)).rstrip("."),
        card={**base.card, **own},
        params=params,
        aliases=tuple(content.get("aliases", ())),
        retired=tuple(content.get("retired", ())),
        variants=(),
    )


def _param(declared: Any, about: Mapping[str, Any], owner: str) -> Param:
    param = Param(
        name=declared.name,
        type=declared.type,
        default=declared.default,
        unit=str(about.get("unit", "")),
        help=str(about.get("help", "")),
        papers=about.get("papers"),
        minimum=about.get("min"),
        maximum=about.get("max"),
        required=declared.required,
    )
    return param if param.required else replace(param, default=param.fit(param.default, owner))


def _from_package(kind: str, point: plugins.Installed, problems: list[str]) -> list[Entry]:
    """The entries of one entry point; its name is the entry's, unless the CARD says otherwise."""
    where = f"{point.distribution}: entry point {point.name} = {point.module}:{point.object}"
    file = plugins.module_file(point.module)
    if file is None:
        problems.append(f"{where}: no such module")
        return []
    card = read_card(file)
    if card is None:
        problems.append(f"{where}: {file} has no CARD")
        return []
    if isinstance(card, Card) and card.literal["object"] != point.object:
        problems.append(f"{where}: the CARD of {file} is about {card.literal['object']}")
        return []
    named = card.literal.get("name") if isinstance(card, Card) else None
    about = {"module": point.module, "origin": point.distribution, "name": named or point.name}
    return _accept(kind, card, problems, **about)


def _from_file(kind: str, reference: plugins.Reference, text: str) -> Entry:
    """An entry for `FILE.py:NAME`: a dataclass, or for a model any callable."""
    loaded = plugins.load_object(reference)
    path = reference.file.resolve()
    card = read_card(path, reference.name)
    if isinstance(card, Broken):
        raise UserError(f"{reference.file} is not a readable {kind}: {card.problem}")
    if card is not None and hasattr(loaded, "__dataclass_fields__"):
        return _build(kind, card, module=None, name=text, origin=str(reference.file))[0]
    if kind not in ("model", "object") or not callable(loaded):
        raise UserError(
            f"{text} is not a dataclass defined in that file, as every {kind} has to be",
            hint="docs/architecture.md shows a registered file",
        )
    literal = {"object": reference.name, "version": 1, "callable": True}
    doc = str(getattr(loaded, "__doc__", "") or "")
    plain = Card(path, doc.strip(), literal, ())
    return _build(kind, plain, module=None, name=text, origin=str(reference.file))[0]
