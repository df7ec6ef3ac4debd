"""Defects known from other attack libraries: subjects and global state changed, files grown."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustbench_defenses as rrd
from robustbench_defenses.evaluation import blocks
from tests.attacks.defects import digits_setting, short, stored
from tests.attacks.test_properties import EVERY


@pytest.mark.parametrize("name", EVERY)
def test_evaluation_leaves_the_subject_as_it_was(name: str, tmp_path: Path) -> None:
    """Mode of each part, buffers, gradients, flags, and three global random states."""
    _, images, labels = digits_setting(6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Dropout(0.5),
            nn.Flatten(), nn.Linear(144, 10),
        )  # fmt: skip
    net.train()
    net[1].eval()  # frozen by the user
    net[0].weight.requires_grad_(False)
    net[6].weight.grad = torch.full_like(net[6].weight, 0.5)
    stored(tmp_path, images, labels)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    flags = [weight.requires_grad for weight in net.parameters()]
    randoms = torch.random.get_rng_state(), random.getstate(), repr(np.random.get_state())

    def same() -> None:
        assert all(torch.equal(value, net.state_dict()[key]) for key, value in state.items())
        assert modes == [part.training for part in net.modules()]
        assert flags == [weight.requires_grad for weight in net.parameters()]
        assert torch.equal(net[6].weight.grad, torch.full_like(net[6].weight, 0.5))
        others = [weight for weight in net.parameters() if weight is not net[6].weight]
        assert all(weight.grad is None for weight in others)
        assert torch.equal(randoms[0], torch.random.get_rng_state())
        assert randoms[1:] == (random.getstate(), repr(np.random.get_state()))

    options = {"dataset": f"npz:{tmp_path}/set.npz", "results": tmp_path / "r", "eps": 0.1}
    threads = torch.get_num_threads()
    rrd.evaluate(net, name, settings=short(name), threads=threads, **options)  # type: ignore[arg-type]
    same()
    first = rrd.attack(net, images, labels, name, eps=0.1, **short(name))
    same()
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        again = rrd.attack(net, images, labels, name, eps=0.1, **short(name))
    assert torch.equal(first.images, again.images)
    calls: list[int] = []

    def fails(part: nn.Module, asked: object) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("in the middle")

    hook = net.register_forward_pre_hook(fails)
    with pytest.raises(Exception, match="in the middle"):
        rrd.attack(net, images, labels, name, eps=0.1, **short(name))
    hook.remove()
    same()


def test_blocks_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of a long evaluation grows with it, not with its square."""
    net, images, labels = digits_setting(40)
    stored(tmp_path, images, labels)
    written: list[tuple[str, int]] = []
    write = blocks.write_npz

    def noted(path: Path, arrays: dict[str, object]) -> None:
        write(path, arrays)
        written.append((path.name, path.stat().st_size))

    monkeypatch.setattr(blocks, "write_npz", noted)
    monkeypatch.setattr(blocks, "BLOCK_SIZE", 5)
    rrd.evaluate(
        net, "pgd", dataset=f"npz:{tmp_path}/set.npz", eps=0.1, settings={"steps": 2},
        results=tmp_path / "results", threads=1, n=-1,
    )  # fmt: skip
    assert [name for name, _ in written] == [f"{start}.npz" for start in range(0, 40, 5)]
    assert max(size for _, size in written) <= 1.2 * min(size for _, size in written)
