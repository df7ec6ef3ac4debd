"""The order of work, what is started ahead of time, and which success counts."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_defenses.engine.agenda import ALMOST_EMPTY, Again, Agenda, Item

SWEEPS = ("envelope", "independent")


def items(*triples: tuple[int, int, int]) -> list[Item]:
    return [Item(*triple) for triple in triples]


def drain(agenda: Agenda, free: int = 1) -> list[Item]:
    """Everything in the order of a batch of `free` rows in which nothing ever succeeds."""
    order = []
    while taken := agenda.take(free, 0):
        for item in taken:
            order.append(item)
            agenda.leave(item)
    return order


def test_envelope_climbs_each_example_by_itself() -> None:
    order = drain(Agenda([0], budgets=2, restarts=2, sweep="envelope"))
    assert order == items((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))


def test_every_example_gets_its_turn_before_anyone_gets_a_second() -> None:
    order = drain(Agenda([4, 7], budgets=2, restarts=1, sweep="envelope"))
    assert order == items((4, 0, 0), (7, 0, 0), (4, 1, 0), (7, 1, 0))


def test_independent_takes_budget_by_budget() -> None:
    order = drain(Agenda([0, 1], budgets=2, restarts=2, sweep="independent"), free=4)
    assert sorted(order) == items(*((e, b, r) for e in (0, 1) for b in (0, 1) for r in (0, 1)))
    assert order[:4] == items((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0))


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("free", [1, 3, 100])
def test_without_success_every_item_is_handed_out_once(sweep: str, free: int) -> None:
    agenda = Agenda(range(5), budgets=3, restarts=2, sweep=sweep)
    order = drain(agenda, free)
    assert len(order) == 30
    assert set(order) == set(
        items(*((e, b, r) for e in range(5) for b in range(3) for r in (0, 1)))
    )
    assert agenda.share == 1


def test_free_places_take_later_restarts_of_busy_examples() -> None:
    agenda = Agenda([0, 1], budgets=1, restarts=3, sweep="envelope")
    assert agenda.take(3, 0) == items((0, 0, 0), (1, 0, 0), (0, 0, 1))
    assert agenda.take(9, 3) == items((0, 0, 2), (1, 0, 1))
    assert agenda.take(9, 5) == items((1, 0, 2))
    assert agenda.take(9, 6) == []


def test_restarts_are_not_started_ahead_while_examples_wait() -> None:
    agenda = Agenda(range(10), budgets=1, restarts=5, sweep="envelope")
    assert agenda.take(10, 0) == items(*((e, 0, 0) for e in range(10)))
    agenda = Agenda(range(10), budgets=1, restarts=5, sweep="envelope")
    assert agenda.take(4, 0) == items(*((e, 0, 0) for e in range(4)))


def test_later_budgets_start_ahead_only_in_an_almost_empty_batch() -> None:
    full = Agenda(range(ALMOST_EMPTY), budgets=2, restarts=1, sweep="envelope")
    full.take(256, 0)
    assert full.take(256, ALMOST_EMPTY) == []
    assert full.take(256, ALMOST_EMPTY - 1) == items((0, 1, 0))  # and then it is not any more
    few = Agenda(range(3), budgets=2, restarts=1, sweep="envelope")
    assert few.take(256, 0) == items(*((e, 0, 0) for e in range(3)), *((e, 1, 0) for e in range(3)))


def test_worthless_after_a_success_in_an_envelope() -> None:
    agenda = Agenda([0, 1], budgets=3, restarts=2, sweep="envelope")
    assert agenda.succeed(Item(0, 1, 0))
    later = items((0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1))
    assert all(agenda.worthless(item) for item in later)
    earlier = items((0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 2, 1))
    assert not any(agenda.worthless(item) for item in earlier)


def test_worthless_after_a_success_in_an_independent_sweep() -> None:
    agenda = Agenda([0], budgets=3, restarts=3, sweep="independent")
    assert agenda.succeed(Item(0, 1, 1))
    assert all(agenda.worthless(item) for item in items((0, 1, 1), (0, 1, 2)))
    others = items((0, 1, 0), (0, 0, 0), (0, 0, 2), (0, 2, 0), (0, 2, 2))
    assert not any(agenda.worthless(item) for item in others)


def test_the_first_success_in_order_counts_not_the_first_in_time() -> None:
    agenda = Agenda([0], budgets=3, restarts=2, sweep="envelope")
    assert agenda.succeed(Item(0, 2, 0))
    assert agenda.succeed(Item(0, 1, 1))
    assert not agenda.succeed(Item(0, 1, 1))  # the last point of the same run changes nothing
    assert not agenda.succeed(Item(0, 2, 1))
    assert agenda.succeed(Item(0, 1, 0))
    assert agenda.first == {0: (1, 0)}


def test_success_stops_the_example_and_frees_its_share() -> None:
    agenda = Agenda([0, 1], budgets=4, restarts=1, sweep="envelope")
    agenda.take(2, ALMOST_EMPTY)
    agenda.succeed(Item(0, 0, 0))
    agenda.leave(Item(0, 0, 0))
    assert agenda.share == 0.5
    agenda.leave(Item(1, 0, 0))
    assert agenda.share == 5 / 8
    assert agenda.take(9, ALMOST_EMPTY) == items((1, 1, 0))


def test_nothing_to_do() -> None:
    for agenda in (
        Agenda([], budgets=3, restarts=2, sweep="envelope"),
        Agenda([0, 1], budgets=0, restarts=1, sweep="envelope"),
        Agenda([0, 1], budgets=0, restarts=1, sweep="independent"),
    ):
        assert agenda.take(100, 0) == []


def simulate(
    sweep: str, table: list[list[list[bool]]], free: int, choices: list[int]
) -> tuple[Agenda, list[float]]:
    """A run in which items end in an order drawn from `choices`; checks what must always hold."""
    budgets, restarts = len(table[0]), len(table[0][0])
    agenda = Agenda(range(len(table)), budgets, restarts, sweep)
    running: list[Item] = []
    started: set[Item] = set()
    shares = []
    position = 0
    while True:
        taken = agenda.take(free - len(running), len(running))
        assert len(taken) <= free - len(running)
        assert not started & set(taken), "an item was started twice"
        assert not any(agenda.worthless(item) for item in taken)
        started |= set(taken)
        running += taken
        if not running:
            return agenda, shares
        item = running.pop(choices[position % len(choices)] % len(running))
        position += 1
        if table[item.example][item.budget][item.restart]:
            agenda.succeed(item)
        agenda.leave(item)
        for other in [other for other in running if agenda.worthless(other)]:
            running.remove(other)
            agenda.leave(other)
        shares.append(agenda.share)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SWEEPS),
    st.integers(1, 4).flatmap(
        lambda budgets: st.integers(1, 3).flatmap(
            lambda restarts: st.lists(
                st.lists(
                    st.lists(st.booleans(), min_size=restarts, max_size=restarts),
                    min_size=budgets, max_size=budgets,
                ),
                min_size=1, max_size=5,
            )
        )
    ),
    st.integers(1, 60),
    st.lists(st.integers(0, 59), min_size=1, max_size=20),
)  # fmt: skip
def test_outcome_does_not_depend_on_who_ran_beside_whom(
    sweep: str, table: list[list[list[bool]]], free: int, choices: list[int]
) -> None:
    agenda, shares = simulate(sweep, table, free, choices)
    for example, budgets in enumerate(table):
        hits = [(b, r) for b, row in enumerate(budgets) for r, hit in enumerate(row) if hit]
        assert agenda.first.get(example) == (min(hits) if hits else None)
        if sweep == "independent":
            found = {b for (e, b) in agenda.broken if e == example}
            assert found == {b for b, _ in hits}
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_repeats_follow_their_order_and_skip_the_decided() -> None:
    agenda = Agenda([0, 1, 2], budgets=2, restarts=1, sweep="envelope")
    drain(agenda, 9)
    again = Again(agenda, deque(items((0, 0, 0), (1, 0, 0), (0, 1, 0), (2, 1, 0))))
    assert again.take(2, 0) == items((0, 0, 0), (1, 0, 0))
    assert again.succeed(Item(0, 0, 0))
    again.leave(Item(0, 0, 0))
    assert again.worthless(Item(0, 1, 0))
    assert again.take(9, 1) == items((2, 1, 0))
    assert again.take(9, 1) == []
    assert again.share == agenda.share == 1
    assert agenda.first == {0: (0, 0)}
