"""What `--attack`, `--set` and `--norm` say together, before anything is loaded."""

from __future__ import annotations

from ..core.errors import UserError


def implied_norm(names: list[str], settings: dict[str, dict[str, object]]) -> str:
    """The norm of the attacks as their settings or they themselves say, for the check of budgets:
    linf only where all work in it."""
    given = {str(values["norm"]) for values in settings.values() if "norm" in values}
    if not given:
        from ..evaluation.question import named

        # What is no attack at all is told where the question is asked.
        made = [named(name, None).create() for name in names if name != "all"]
        given = {str(getattr(attack, "norm", "linf")) for attack in made}
    return "linf" if given <= {"linf"} else min(given - {"linf"})


def settings_by_attack(settings: dict[str, str], names: list[str]) -> dict[str, dict[str, object]]:
    """`steps=40` for every attack as "", `pgd_linf.steps=40` for that one alone.

    An attack may be called as in `names`, or with its norm: `pgd` is `pgd_linf` too.
    """
    chosen: dict[str, dict[str, object]] = {"": {}}
    for key, value in settings.items():
        attack, _, name = key.rpartition(".")
        for one in _called(attack, names) if attack else [""]:
            chosen.setdefault(one, {})[name] = value
    return chosen


def _called(attack: str, names: list[str]) -> list[str]:
    """Those of `names` that the user calls `attack` (whose hyphens are underscores by now)."""
    from ..core import registry
    from ..core.errors import did_you_mean

    literally = [name for name in names if name.replace("-", "_") == attack]
    if literally:
        return literally
    found = []
    for name in names:
        full = registry.find("attack", name).name
        if attack == full or attack.rpartition("_")[0] == full or full.rpartition("_")[0] == attack:
            found.append(name)
    if not found:
        hint = did_you_mean(attack, names, ", ".join(names))
        raise UserError(f"--set {attack}: {attack!r} is not among the attacks", hint)
    return found
