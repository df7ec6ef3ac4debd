"""A search that goes on from a snapshot ends in the outcome of an undisturbed one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from robustbench_defenses.core.view import View
from robustbench_defenses.engine.ensemble import search_for
from robustbench_defenses.engine.search import Block, Outcome
from robustbench_defenses.engine.snapshot import MismatchError, State
from robustbench_defenses.engine.twin import Twin, search_twin

from . import oracles

GRIDS = {"linf": (0.02, 0.05, 0.1), "l2": (0.1, 0.3, 0.6), "l1": (0.5, 1.5, 3.0)}
FEW = {"steps": 6, "n_queries": 12, "restarts": 2, "targets": 2, "search_steps": 2}
Take = Callable[[], State]


class Stopped(Exception):  # noqa: N818
    pass


def make(name: str, sweep: str = "envelope", **options: Any) -> Any:
    """A fresh search of few steps over 14 images with a batch too small for all."""
    attack = oracles.build(name, **FEW)
    model = oracles.convolution(3, 5)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(14, 3, 6, 5, generator=generator).double()
    labels = oracles.predicted(model, images)
    labels[3] = (labels[3] + 1) % 5  # misclassified already
    block = Block(
        images, labels, torch.full_like(labels, -1), torch.arange(14), GRIDS[attack.norm], sweep
    )
    given = {"twin": Twin(model, model, autocast=False), "deployed": model, "block": block}
    return search_for(attack, batch_size=9, **(given | options))


def written(state: State) -> State:
    """As it comes back from a disk."""
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    return safetensors.torch.load(safetensors.torch.save(tensors))


def stopped_at(search: Any, step: int) -> State | None:
    """The snapshot after `step` steps, None where the search ends before."""
    seen: list[State] = []
    steps = [0]

    def watch(take: Take) -> None:
        steps[0] += 1
        if steps[0] == step:
            seen.append(written(take()))
            raise Stopped

    search.watch = watch
    try:
        search.run()
    except Stopped:
        return seen[0]
    return None


def plain(value: Any) -> Any:
    """An outcome in comparable terms, without what is measured in seconds."""
    if isinstance(value, Tensor):
        return [str(value.dtype), value.nan_to_num(-1).tolist()]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != "seconds"}
    return [plain(item) for item in value] if isinstance(value, list) else value


def same(one: Outcome, other: Outcome) -> None:
    assert plain(asdict(one)) == plain(asdict(other))


@pytest.mark.parametrize("name", oracles.attacks())
def test_every_attack_goes_on(name: str) -> None:
    whole = make(name).run()
    stops = 0
    for step in (1, 2, 5, 11, 40):
        state = stopped_at(make(name), step)
        if state is None:
            break
        stops += 1
        same(make(name, resume=state).run(), whole)
    assert stops > 0


@pytest.mark.parametrize("name", ["pgd_linf", "apgd_t_l2"])
def test_every_eps_afresh(name: str) -> None:
    whole = make(name, sweep="independent").run()
    for step in (3, 9):
        state = stopped_at(make(name, sweep="independent"), step)
        assert state is not None
        same(make(name, sweep="independent", resume=state).run(), whole)


def test_stopped_again_and_again() -> None:
    """A new process for every two steps."""
    whole = make("autoattack").run()
    state, turns = None, 0
    while True:
        following = stopped_at(make("autoattack", resume=state), 2)
        if following is None:
            break
        state, turns = following, turns + 1
    assert turns > 5
    same(make("autoattack", resume=state).run(), whole)


@pytest.mark.parametrize("name", ["ddn", "pgd_linf", "autoattack_l2"])
def test_kept_points_are_among_it(name: str) -> None:
    whole = make(name, keep_points=True).run()
    assert whole.points is not None
    state = stopped_at(make(name, keep_points=True), 4)
    assert state is not None
    same(make(name, keep_points=True, resume=state).run(), whole)


def test_rescue_goes_on() -> None:
    """Rows that run again in float32 after a coarse twin are part of a snapshot."""
    model = oracles.convolution(3, 5)

    def coarse(images: Tensor) -> Tensor:
        return (model(images) * 8).round() / 8 + 0 * images.sum()

    twin = Twin(coarse, model, autocast=True)
    named = {"twin": twin, "deployed": model}
    waiting, fine, step = 0, 0, 0
    whole = make("apgd_ce", **named).run()
    while True:
        step += 1
        state = stopped_at(make("apgd_ce", **named), step)
        if state is None:
            break
        fine += int(state["fine"])
        waiting += len(state["near"]) > 0 and not bool(state["fine"])
        if len(state["near"]) > 0:
            same(make("apgd_ce", **named, resume=state).run(), whole)
    assert fine > 0
    assert waiting > 0


def test_a_snapshot_of_another_attack_is_refused() -> None:
    state = stopped_at(make("pgd_linf"), 2)
    assert state is not None
    with pytest.raises(MismatchError):
        make("apgd_ce_linf", resume=state).run()


class Noisy(torch.nn.Module):
    """Answers at random, by two draws."""

    random, draws, aggregation = True, 2, "logits_mean"

    def __init__(self) -> None:
        super().__init__()
        self.inner = oracles.convolution(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images + 0.05 * torch.randn_like(images))
        return logits


@pytest.mark.parametrize("name", ["pgd_linf", "ddn", "autoattack"])
def test_random_subjects_draw_the_same(name: str) -> None:
    model = Noisy().double().eval()
    view, images = View("noisy", model), torch.rand(4, 3, 6, 5).double()
    named = {"twin": search_twin(view, images, "fp32"), "deployed": model}
    whole = make(name, **named).run()
    state = stopped_at(make(name, **named), 7)
    assert state is not None
    same(make(name, **named, resume=state).run(), whole)
