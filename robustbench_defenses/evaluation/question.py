"""An attack as asked for: name, norm, parameters and budgets, resolved and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..core import registry
from ..core.errors import UserError
from ..core.norms import NORMS, check_eps
from ..data.source import DataInfo
from . import backends

Sweep = Literal["envelope", "independent", "clipped"]
SWEEPS: tuple[str, ...] = get_args(Sweep)
_PROTOCOL = ("norm", "restarts", "start", "ask", "tell", "finished", "last", "passes")
_SUFFIXES = ("_linf", "_l2", "_l1", "_l0")


@dataclass(frozen=True)
class AttackQuestion:
    """One attack at the budgets `grid` (rising, pixel units; eps 0 is the clean accuracy)."""

    name: str
    entry: registry.Entry
    attack: Any
    parameters: dict[str, Any]
    norm: str
    grid: tuple[float, ...]
    sweep: str
    targeted: bool
    backend: str = "native"
    call: backends.Call | None = None  # the library's, where it is not native

    @property
    def label(self) -> str:
        """The name, and who answers where that is a library."""
        return self.name if self.call is None else f"{self.name} ({self.backend})"

    @property
    def minimum(self) -> bool:
        """True for an attack that searches the nearest point and is given no budget."""
        return bool(getattr(self.attack, "minimum", False))

    @property
    def table(self) -> bool:
        """True where every eps is answered by itself: the record is a table (eps, example)."""
        return self.sweep != "envelope" and bool(self.budgets)

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets that need an attack."""
        return tuple(eps for eps in self.grid if eps > 0)


def named(name: str, norm: str | None) -> registry.Entry:
    """The attack entry behind `name` and `--norm`: `pgd` with l2 is `pgd_l2`."""
    entry = registry.find("attack", name)
    own = next((suffix[1:] for suffix in _SUFFIXES if entry.name.endswith(suffix)), None)
    if own is not None:
        if norm is not None and norm != own:
            raise UserError(
                f"{entry.name} works in {own}, not in {norm}",
                hint=f"--attack {entry.name.removesuffix('_' + own)} --norm {norm}",
            )
        return entry
    params = {param.name: param for param in entry.params}
    if "norm" not in params:
        return entry
    wanted = norm or str(params["norm"].default)
    entry.settings({"norm": wanted})  # refuses a norm that the attack does not have
    known = {one.name for one in registry.entries("attack")} if entry.origin == "rrd" else set()
    full = f"{entry.name}_{wanted}"
    return registry.find("attack", full) if full in known else entry


def fits_norm(entry: registry.Entry, norm: str) -> bool:
    """False where an attack's name or its parameter says that it does not work in `norm`."""
    try:
        named(entry.name, norm)
    except UserError:
        return False
    return True


def ask(
    name: str,
    info: DataInfo,
    *,
    norm: str | None = None,
    settings: Mapping[str, object] | None = None,
    eps: Sequence[float] | float | None = None,
    sweep: str = "envelope",
    targeted: bool = False,
    backend: str = "native",
) -> AttackQuestion:
    """Resolve an attack and its budgets; `eps` None takes the published grid of the data set."""
    if backend not in backends.BACKENDS:
        raise UserError(
            f"unknown backend {backend!r}", hint=f"one of {', '.join(backends.BACKENDS)}"
        )
    if sweep not in SWEEPS:
        raise UserError(f"unknown sweep {sweep!r}", hint=f"one of {', '.join(SWEEPS)}")
    settings = dict(settings or {})
    given = settings.get("norm")
    if given is not None and norm is not None and given != norm:
        raise UserError(f"--set norm={given} contradicts --norm {norm}")
    entry = named(name, norm or (str(given) if given is not None else None))
    chosen = norm if norm is not None and any(p.name == "norm" for p in entry.params) else None
    parameters = entry.settings(settings | ({"norm": chosen} if chosen else {}))
    attack = entry.create(**parameters)
    _check_attack(attack, entry.name)
    actual = str(attack.norm)
    if norm is not None and norm != actual:
        raise UserError(f"{entry.name} works in {actual}, not in {norm}")
    minimum = bool(getattr(attack, "minimum", False))
    if sweep == "clipped" and not minimum:
        raise UserError(
            f"{entry.name} is given a budget: it finds nothing that could be clipped to another",
            hint="--sweep clipped is for minimum-norm attacks: deepfool, ddn, fmn, cw, ...",
        )
    grid = _grid(eps, info, actual, entry.name, minimum)
    if sweep == "independent" and hasattr(attack, "members") and sum(e > 0 for e in grid) > 1:
        raise UserError(
            f"{entry.name} attacks at each eps only what stands there: an envelope",
            hint="ask one eps at a time, or one of its members",
        )
    return AttackQuestion(
        name=entry.name,
        entry=entry,
        attack=attack,
        parameters=parameters,
        norm=actual,
        grid=grid,
        sweep=sweep,
        targeted=targeted,
        backend=backend,
        call=None
        if backend == "native"
        else backends.call_for(backend, entry.family, attack, targeted, info.classes),
    )


def _check_attack(attack: Any, name: str) -> None:
    """The user's own class may be no attack at all."""
    missing = [part for part in _PROTOCOL if not hasattr(attack, part)]
    if missing and not hasattr(attack, "members"):
        raise UserError(
            f"{name} is not an attack: it has no {', '.join(missing)}",
            hint="docs/architecture.md shows what an attack has",
        )
    if attack.norm not in NORMS:
        raise UserError(f"{name} has norm {attack.norm!r}", hint=f"one of {', '.join(NORMS)}")


def _grid(
    eps: Sequence[float] | float | None, info: DataInfo, norm: str, attack: str, minimum: bool
) -> tuple[float, ...]:
    if eps is None:
        published = info.grids.get(norm, [])
        if not published and not minimum:
            raise UserError(
                f"{info.name} has no published {norm} grid", hint=f"{attack} needs --eps E[,E...]"
            )
        return tuple(published)
    values = [eps] if isinstance(eps, int | float) else list(eps)
    if not values:
        raise UserError("the eps grid is empty")
    return tuple(sorted({check_eps(float(value), norm) for value in values}))
