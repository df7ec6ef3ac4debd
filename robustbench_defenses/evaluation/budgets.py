"""Budgets: how hard `--attack all` and `--budget quick|standard|deep` try.

A level has one number of examples, so that the worst case over its attacks is a number of the same
images. What an attack does at a level stands in its own card, so a new attack joins by its file
alone:

    "budgets": {"quick": {"steps": 20}, "deep": {"steps": 1000}},    parameters at these levels
    "needs": ["taps"],                                               what a subject must offer

Both keys may be missing; at a level that a card does not name, the attack runs with its defaults.
`"budgets": None` keeps an entry (a variant that only repeats another) out of `all`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core import registry
from ..core.errors import UserError
from ..core.view import View
from .question import fits_norm, named

if TYPE_CHECKING:
    from .question import AttackQuestion

ALL = "all"
# Level: number of examples.
LEVELS = {"quick": 500, "standard": 1000, "deep": 1000}
DEFAULT_LEVEL = "quick"


def check_level(level: str) -> None:
    """A `UserError` where there is no such budget."""
    if level not in LEVELS:
        raise UserError(f"unknown budget {level!r}", hint=f"one of {', '.join(LEVELS)}")


def budget_of(entry: registry.Entry, level: str) -> dict[str, Any]:
    """The parameters of an attack at a level, from its card; nonsense there is a `UserError`."""
    given = entry.card.get("budgets") or {}
    for name in given:
        check_level(name)
    entry.settings(given.get(level, {}))
    return dict(given.get(level, {}))


def every(norm: str, view: View | None = None, sweep: str = "envelope") -> list[str]:
    """Names of all attacks in `norm`, each once, that fit the `sweep` and what a `view` offers.

    Ensembles are left out where their members are in the list themselves. `view` None: whatever
    the subject.
    """
    found: dict[str, Any] = {}
    for entry in registry.entries("attack"):
        if not _joins(entry, norm, view):
            continue
        entry = named(entry.name, norm)
        attack = entry.create(**({"norm": norm} if _has_norm(entry) else {}))
        fits = attack.norm == norm and (sweep != "clipped" or getattr(attack, "minimum", False))
        if fits and attack not in found.values():
            found[entry.name] = attack
    alone = {type(attack) for attack in found.values() if not hasattr(attack, "members")}
    return [
        name
        for name, attack in found.items()
        if not hasattr(attack, "members")
        or not {type(member) for _, member in attack.members(10)} <= alone
    ]


def expand(
    names: Iterable[str], norm: str | None, view: View | None = None, sweep: str = "envelope"
) -> list[str]:
    """`names` with `all` replaced by the attacks it stands for, those named besides not twice."""
    names = list(names)
    if ALL not in names:
        return names
    others = [name for name in names if name != ALL]
    known = {named(name, norm).name for name in others}
    whole = [name for name in every(norm or "linf", view, sweep) if name not in known]
    if not whole and not others:
        raise UserError(f"no attack works in {norm}", hint="rrd list attacks")
    return [*others, *whole]


def settings_for(
    names: Sequence[str],
    attacks: Sequence[str],
    settings: Mapping[str, Mapping[str, object]],
    norm: str | None,
    level: str | None,
) -> dict[str, dict[str, Any]]:
    """The parameters given to each of `names` (`attacks` with `all` expanded), by name.

    `settings` go over the budget of the level (None: no budget). A setting for all attacks ("")
    reaches those that have the parameter where `all` was asked for, every one that was named.
    """
    common = dict(settings.get("", {}))
    params = {name: {p.name for p in named(name, norm).params} for name in names}
    if ALL in attacks:
        for key in common:
            if not any(key in known for known in params.values()):
                raise UserError(
                    f"no attack of --attack all has a parameter {key!r}",
                    hint="--set ATTACK.KEY=VALUE speaks to one; rrd info ATTACK shows its own",
                )
    result = {}
    for name in names:
        base = {} if level is None else budget_of(named(name, norm), level)
        reached = {key: v for key, v in common.items() if key in params[name] or name in attacks}
        result[name] = {**base, **reached, **settings.get(name, {})}
    return result


def declared(question: AttackQuestion, n: int, classes: int) -> tuple[int, int]:
    """The most forward and backward passes that a question may take on `n` examples."""
    from ..engine.search import runs_of

    attack = question.attack
    forward, backward = attack.passes(classes)
    runs = 1 if hasattr(attack, "members") else runs_of(attack, classes)
    budgets = 1 if question.minimum else len(question.budgets)
    return n * runs * budgets * forward, n * runs * budgets * backward


def _joins(entry: registry.Entry, norm: str, view: View | None) -> bool:
    if entry.card.get("budgets", {}) is None or any(param.required for param in entry.params):
        return False
    if not fits_norm(entry, norm):
        return False
    return view is None or all(_offers(view, need) for need in entry.card.get("needs", ()))


def _offers(view: View, need: str) -> bool:
    """True where a view has what an attack needs: taps, or something by name."""
    if need == "taps":
        return bool(view.tap_names)
    return getattr(view.logits, need, None) is not None


def _has_norm(entry: registry.Entry) -> bool:
    return any(param.name == "norm" for param in entry.params)
