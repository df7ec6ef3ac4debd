"""Snapshots: a search under way as named tensors, from which it goes on as if nothing had happened.

Everything that decides what comes next is in them: the agenda, the rows under way with the state of
the attack, what has been found so far. So a search that goes on from a snapshot ends in the outcome
of an undisturbed one, bit for bit where the machine is the same. Tensors only, no pickles.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .agenda import Again, Agenda, Item

if TYPE_CHECKING:
    from .search import Outcome, Search, _Running

State = dict[str, Tensor]
T = TypeVar("T")


class MismatchError(ValueError):
    """A snapshot does not fit the search that is to go on from it."""


@contextlib.contextmanager
def matching() -> Iterator[None]:
    """Inside, whatever goes wrong between a snapshot and its search is a `MismatchError`."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, TypeError, IndexError) as error:
        raise MismatchError(f"{type(error).__name__}: {error}") from error


def flat(record: Any, prefix: str) -> State:
    """The tensors of a dataclass, at any depth, by `prefix` and field names."""
    state: State = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            state[prefix + field.name] = value
        elif is_dataclass(value):
            state |= flat(value, f"{prefix}{field.name}.")
    return state


def filled(record: T, state: State, prefix: str, device: torch.device) -> T:
    """`record` with its tensors replaced by those that `flat` made of another of its kind.

    `KeyError` where `state` lacks one.
    """
    changes: dict[str, Any] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changes[field.name] = state[prefix + field.name].to(device)
        elif is_dataclass(value):
            changes[field.name] = filled(value, state, f"{prefix}{field.name}.", device)
    return replace(record, **changes)  # type: ignore[type-var]


def below(state: State, prefix: str) -> State:
    """The part of `state` under `prefix`, without it."""
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}


def outcome_state(out: Outcome, prefix: str) -> State:
    """An outcome so far."""
    state = flat(out, prefix)
    state[prefix + "counts"] = torch.tensor(
        [out.cost.forward, out.cost.backward, out.invalid_claims]
    )
    return state


def restore_outcome(out: Outcome, state: State, prefix: str) -> None:
    """Put into `out`, in place, what `outcome_state` said."""
    for name, tensor in flat(out, prefix).items():
        tensor.copy_(state[name])
    out.cost.forward, out.cost.backward, out.invalid_claims = state[prefix + "counts"].tolist()


def taken(search: Search, agenda: Agenda | Again, running: _Running, fine: bool) -> State:
    """A search between two steps."""
    whole = agenda.agenda if isinstance(agenda, Again) else agenda
    state = outcome_state(search._out, "out.") | search._more()
    state |= {f"agenda.{name}": values for name, values in agenda_state(whole).items()}
    state["near"] = _ints(search._near, 3)
    state["fine"] = torch.tensor(fine)
    state["again"] = _ints(agenda.items if isinstance(agenda, Again) else (), 3)
    state["items"] = torch.stack([running.rows.example, running.budget, running.restart], 1)
    for name in ("margin", "first_loss", "age"):
        state[name] = getattr(running, name)
    return state | flat(running.state, "state.")


def resumed(
    search: Search, agenda: Agenda, state: State
) -> tuple[Agenda | Again, _Running | None, bool]:
    """What `taken` saw: the agenda in force, the rows under way, and whether they run in float32.

    `search` and `agenda` are fresh ones of the same question; they are brought up to date. A
    snapshot that does not fit them is a `MismatchError`.
    """
    with matching():
        return _resumed(search, agenda, state)


def _resumed(
    search: Search, agenda: Agenda, state: State
) -> tuple[Agenda | Again, _Running | None, bool]:
    device = search.block.images.device
    restore_outcome(search._out, state, "out.")
    restore_agenda(agenda, below(state, "agenda."))
    search._near[:] = _items(state["near"])
    running = None
    items = _items(state["items"])
    if items:
        running = search._begin(items)
        running.state = filled(running.state, state, "state.", device)
        for name in ("margin", "first_loss", "age"):
            setattr(running, name, state[name].to(device))
    search._more_from(state)
    fine = bool(state["fine"])
    return Again(agenda, deque(_items(state["again"]))) if fine else agenda, running, fine


def agenda_state(agenda: Agenda) -> State:
    """Where every unit stands, and the order in which they come next."""
    units = agenda._units.values()
    return {
        "units": _ints(((u.position, u.running, u.counted) for u in units), 3),
        "ready": _ints(agenda._ready, 2),
        "busy": _ints(agenda._busy, 2),
        "first": _ints(((example, *known) for example, known in agenda.first.items()), 3),
        "broken": _ints(((*place, restart) for place, restart in agenda.broken.items()), 3),
        "ended": torch.tensor(agenda._ended),
    }


def restore_agenda(agenda: Agenda, state: State) -> None:
    """Bring a fresh agenda of the same examples up to date."""
    for unit, values in zip(agenda._units.values(), state["units"].tolist(), strict=True):
        unit.position, unit.running, unit.counted = values
    agenda._ready = deque((example, budget) for example, budget in state["ready"].tolist())
    agenda._busy = dict.fromkeys((example, budget) for example, budget in state["busy"].tolist())
    agenda.first = {example: (budget, run) for example, budget, run in state["first"].tolist()}
    agenda.broken = {(example, budget): run for example, budget, run in state["broken"].tolist()}
    agenda._ended = int(state["ended"])


def _ints(rows: Iterable[Iterable[int]], width: int) -> Tensor:
    return torch.tensor([tuple(row) for row in rows], dtype=torch.int64).reshape(-1, width)


def _items(rows: Tensor) -> list[Item]:
    return [Item(*row) for row in rows.tolist()]
