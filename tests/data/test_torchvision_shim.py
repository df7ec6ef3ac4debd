from __future__ import annotations

from typing import Any

import pytest

from robustbench_defenses.core import registry
from robustbench_defenses.core.errors import UserError
from robustbench_defenses.data import torchvision_shim

LISTED = [e.name for e in registry.entries("dataset") if "torchvision" in e.card]


@pytest.mark.parametrize("name", LISTED)
def test_our_cards_agree_with_torchvision(name: str) -> None:
    """The very torchvision that is installed, compiled operators or not."""
    card = registry.find("dataset", name).card
    mirrors, sums = torchvision_shim.origin(card["torchvision"])
    assert mirrors
    assert all(mirror.startswith("http") for mirror in mirrors)
    # SVHN has a third file that nothing here reads.
    assert {file: sums[file] for file in card["files"]} == {
        file: about["md5"] for file, about in card["files"].items()
    }
    parts = {
        part: own["md5"]
        for about in card["files"].values()
        for part, own in about.get("unpacked", {}).items()
    }
    known = getattr(torchvision_shim.torchvision().datasets, card["torchvision"])
    if parts:
        listed = [*known.train_list, *known.test_list]
        theirs = {f"{known.base_folder}/{file}": md5 for file, md5 in listed}
        assert parts == {part: theirs[part] for part in parts}


def test_picture_helpers_work() -> None:
    import torch

    grid = torchvision_shim.torchvision().utils.make_grid(torch.zeros(2, 1, 4, 4), padding=1)
    assert grid.shape == (3, 6, 11)


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(UserError, match="does not say where its NoSuchSet comes from"):
        torchvision_shim.origin("NoSuchSet")


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise ImportError("No module named 'torchvision'")

    monkeypatch.setattr(torchvision_shim, "_import", refuse)
    with pytest.raises(UserError, match="torchvision cannot be imported"):
        torchvision_shim.torchvision.__wrapped__()


def test_another_fault_of_its_import_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(torchvision_shim, "_import", fail)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_shim.torchvision.__wrapped__()
