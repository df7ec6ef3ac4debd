"""The registry: cards from source, settings with types, names."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from robustbench_defenses.core import cache, cards, registry
from robustbench_defenses.core.errors import Notice, UserError

from .toys import TOY, own_cache, write

__all__ = ["own_cache"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "attacks", "toy.py", TOY)
    write(tmp_path / "attacks", "helper.py", "VALUE = 1\nraise RuntimeError\n")
    return tmp_path


@pytest.fixture
def toy(root: Path) -> registry.Entry:
    return registry.find("attack", "toy", root)


def test_entries_are_read_without_running_the_file(root: Path) -> None:
    base, variant = registry.entries("attack", root)
    assert (base.name, base.summary, base.version) == ("toy", "Toy attack: adds a little", 2)
    assert base.doc.strip().startswith("x' = x + step")
    assert base.source == "Nobody 2020, equation 1"
    assert base.variants == ("toy_l2",)
    assert base.extra == {"cost": "one pass"}
    assert base.defaults() == {
        "norm": "linf", "steps": 40, "rate": 8 / 255, "start": "image", "random": False,
        "name": "x", "limit": None, "sizes": (1, 2), "pair": (1, 0.5), "half": 0.5, "empty": (),
    }  # fmt: skip
    assert (variant.name, variant.family, variant.summary) == (
        "toy_l2",
        "toy",
        "Toy in the L2 ball",
    )
    assert variant.defaults() == {**base.defaults(), "norm": "l2", "steps": 5}


def test_params_carry_the_card(toy: registry.Entry) -> None:
    steps = {param.name: param for param in toy.params}["steps"]
    assert (steps.type, steps.unit, steps.papers) == ("int", "iterations", {"nobody": 7})
    assert (steps.minimum, steps.maximum) == (1, 100)
    start = {param.name: param for param in toy.params}["start"]
    assert start.type == "Literal['image', 'random']"
    assert start.shown_type == "image | random"


@pytest.mark.parametrize(
    "name", ["toy", "TOY", " toy ", "tiny_step", "tiny-step", "Tiny step", "toy-l2", "TOY_L2"]
)
def test_names_are_forgiving(root: Path, name: str) -> None:
    expected = "toy_l2" if "l2" in name.lower() else "toy"
    assert registry.find("attack", name, root).name == expected
    assert registry.find_any(name, root).name == expected


def test_a_retired_name_says_the_new_one(root: Path) -> None:
    with pytest.warns(Notice, match="old-toy is now called toy"):
        assert registry.find("attack", "old-toy", root).name == "toy"


def test_an_unknown_name_gets_near_names(root: Path) -> None:
    with pytest.raises(UserError, match="unknown attack 'toi'") as caught:
        registry.find("attack", "toi", root)
    assert "'toy'" in str(caught.value.hint)
    assert "rrd list attacks" in str(caught.value.hint)
    with pytest.raises(UserError, match="nothing is called 'toi'"):
        registry.find_any("toi", root)
    with pytest.raises(UserError, match="unknown kind 'sauce'"):
        registry.entries("sauce", root)


def test_a_name_of_two_kinds_needs_its_kind(root: Path) -> None:
    write(root / "models", "toy.py", TOY.replace("toy_l2", "toy_two"))
    with pytest.raises(UserError, match="'toy' names 2 things") as caught:
        registry.find_any("toy", root)
    assert caught.value.hint == "model:toy or attack:toy"
    assert registry.find_any("model:toy", root).kind == "model"
    assert registry.find_any("attacks:toy", root).kind == "attack"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("steps", "7", 7),
        ("rate", "8/255", 8 / 255),
        ("rate", "1e-3", 1e-3),
        ("rate", 1, 1.0),
        ("random", "yes", True),
        ("random", "0", False),
        ("random", True, True),
        ("norm", "L2", "l2"),
        ("name", "none", "none"),
        ("limit", "none", None),
        ("limit", None, None),
        ("limit", "2", 2.0),
        ("sizes", "3", (3,)),
        ("sizes", "3, 4,5", (3, 4, 5)),
        ("sizes", "(3,)", (3,)),
        ("sizes", "", ()),
        ("sizes", [3, 4], (3, 4)),
        ("pair", "2,1/4", (2, 0.25)),
        ("empty", "a,b", ("a", "b")),
    ],
)
def test_settings_convert(toy: registry.Entry, key: str, text: object, value: object) -> None:
    settings = toy.settings({key: text})
    assert settings[key] == value
    assert type(settings[key]) is type(value)
    assert list(settings) == [param.name for param in toy.params]
    assert toy.settings(settings) == settings


@pytest.mark.parametrize(
    ("key", "text", "sentence"),
    [
        ("stpes", "7", "toy has no parameter 'stpes'"),
        ("steps", "many", "toy: steps=many is not a whole number"),
        ("steps", "7.5", "toy: steps=7.5 is not a whole number"),
        ("steps", 7.0, "toy: steps=7 is not a whole number"),
        ("steps", True, "toy: steps=true is not a whole number"),
        ("steps", "0", "toy: steps=0 is below the smallest allowed value 1"),
        ("steps", "101", "toy: steps=101 is above the largest allowed value 100"),
        ("rate", "1/0", "toy: rate=1/0 is not a number"),
        ("rate", "nan", "toy: rate=nan is not a number"),
        ("rate", "-0.1", "toy: rate=-0.1 is below the smallest allowed value 0"),
        ("random", "maybe", "toy: random=maybe is not true or false"),
        ("norm", "l3", "toy: norm=l3 is not one of linf, l2"),
        ("limit", "x", "toy: limit=x is not a number or none"),
        ("sizes", "1,x", "toy: sizes=1,x is not a comma list (each a whole number)"),
        ("pair", "1", "toy: pair=1 is not a comma list (a whole number, a number)"),
        ("name", 3, "toy: name=3 is not a text"),
    ],
)
def test_settings_refuse(toy: registry.Entry, key: str, text: object, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        toy.settings({key: text})
    assert caught.value.message == sentence


def test_an_unknown_setting_gets_near_names(toy: registry.Entry) -> None:
    with pytest.raises(UserError) as caught:
        toy.settings({"step": "7"})
    assert "'steps'" in str(caught.value.hint)


def test_changed_keeps_what_differs_from_the_entry(root: Path, toy: registry.Entry) -> None:
    assert toy.changed({"steps": "40", "rate": "0.5", "sizes": "1,2"}) == {"rate": 0.5}
    variant = registry.find("attack", "toy_l2", root)
    assert variant.changed({"norm": "l2", "steps": 40}) == {"steps": 40}


def test_a_required_parameter_is_asked_for(tmp_path: Path) -> None:
    source = '"""Needs."""\nCARD = {"object": "N", "version": 1}\nclass N:\n    k: int\n'
    write(tmp_path / "attacks", "needs.py", source)
    entry = registry.find("attack", "needs", tmp_path)
    assert entry.settings({"k": "3"}) == {"k": 3}
    with pytest.raises(UserError, match="needs needs a value for 'k'"):
        entry.settings()


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("class Toy:", "class Toy", "line"),
        ('"version": 2', '"version": make()', "CARD is not a literal"),
        ('"version": 2', '"version": "2"', "CARD['version'] must be a whole number"),
        ('"object": "Toy"', '"object": "Joy"', "CARD['object'] is 'Joy': no such class"),
        ('"aliases": ["Tiny-Step"]', '"aliases": "tiny"', "CARD['aliases'] must be a list"),
        ('"rate": {"min"', '"rte": {"min"', "CARD['params'] describes 'rte'"),
        ('"steps": 5', '"stps": 5', "variant 'toy_l2' sets 'stps'"),
        ('"steps": 5', '"steps": 500', "toy_l2: steps=500 is above"),
        ("steps: int = 40", "steps: int = 4.5", "toy: steps=4.5 is not a whole number"),
        ("steps: int = 40", "steps: int = make()", "parameter 'steps': line"),
        ("steps: int = 40", "steps: dict = 40", "type 'dict' is none of"),
        ("start: Start", "start: Strat", "type 'Strat' is none of"),
    ],
)
def test_a_broken_file_is_named(root: Path, before: str, after: str, problem: str) -> None:
    assert before in TOY
    write(root / "attacks", "broken.py", TOY.replace(before, after, 1).replace("toy_l2", "bad_l2"))
    problem = problem.replace("toy", "bad") if "toy_l2" in problem else problem
    problem = problem.replace("toy:", "broken:")
    with pytest.raises(UserError) as caught:
        registry.entries("attack", root)
    assert "broken.py is not a readable attack" in caught.value.message
    assert problem in caught.value.message
    # What can be read is still found; what cannot be found names the broken file.
    assert registry.find("attack", "toy", root).name == "toy"
    with pytest.raises(UserError, match=r"unknown attack 'broken' .*broken\.py"):
        registry.find("attack", "broken", root)


def test_a_name_claimed_twice_names_both_files(root: Path) -> None:
    write(root / "attacks", "other.py", TOY.replace("toy_l2", "other_l2").replace("old_toy", "o"))
    with pytest.raises(UserError, match=r"'tiny_step' is claimed twice.*other\.py and .*toy\.py"):
        registry.entries("attack", root)
    with pytest.raises(UserError, match="claimed twice"):
        registry.find("attack", "tiny-step", root)
    assert registry.find("attack", "other", root).name == "other"


def test_a_prefix_leads_to_its_entry(tmp_path: Path) -> None:
    source = '"""Files."""\nCARD = {"object": "N", "version": 1, "prefix": "npz"}\nclass N: ...\n'
    write(tmp_path / "data", "npz_file.py", source)
    assert registry.find("dataset", "npz:some/file.npz", tmp_path).name == "npz_file"


def test_types_are_followed_across_files(tmp_path: Path) -> None:
    write(tmp_path, "names.py", 'from typing import Literal\nNorm = Literal["a", "b"]\n')
    source = """
        '''Far.'''
        from ..names import Norm as N
        CARD = {"object": "Far", "version": 1}
        class Far:
            norm: N = "a"
    """
    write(tmp_path / "attacks", "far.py", source)
    assert registry.find("attack", "far", tmp_path).params[0].type == "Literal['a', 'b']"
    # The cache notices that the other file has changed.
    write(tmp_path, "names.py", 'from typing import Literal\nNorm = Literal["a", "b", "c"]\n')
    assert registry.find("attack", "far", tmp_path).params[0].type == "Literal['a', 'b', 'c']"


def test_the_cache_gives_equal_cards_and_notices_changes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.entries("attack", root)[0].document()
    parsed: list[Path] = []
    original = cards._parse

    def counted(path: Path, name: str | None = None) -> Any:
        parsed.append(path)
        return original(path, name)

    monkeypatch.setattr(cards, "_parse", counted)
    again = registry.entries("attack", root)
    assert parsed == []
    assert again[0].document() == first
    assert again[0].defaults()["sizes"] == (1, 2)
    write(root / "attacks", "toy.py", TOY.replace("Toy attack", "Other attack"))
    assert registry.entries("attack", root)[0].summary.startswith("Other attack")
    assert parsed == [root / "attacks" / "toy.py"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stamp": 1, "content": {}}'])
def test_a_damaged_cache_is_no_matter(root: Path, own_cache: Path, content: str) -> None:
    registry.entries("attack", root)
    file = own_cache / "robustbench_defenses" / "cards.json"
    file.write_text(content)
    assert [entry.name for entry in registry.entries("attack", root)] == ["toy", "toy_l2"]


def test_a_cache_that_cannot_be_written_is_no_matter(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = write(tmp_path, "blocked", "a file where the cache folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert len(registry.entries("attack", root)) == 2
    assert cache.read_cache("cards.json", 1) == {}


def test_odd_values_survive_the_cache() -> None:
    value = {"a": (1, (2.5, None)), "b": {1: "x", (): [True]}, "c": float("inf"), "()": "y"}
    assert cards._unpack(cards._pack(value)) == value


# --- what is really there

ALL = [entry for kind in registry.KINDS for entry in registry.scan(kind).entries]


def test_no_file_of_ours_is_broken() -> None:
    assert [problem for kind in registry.KINDS for problem in registry.scan(kind).problems] == []


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_a_card_agrees_with_its_object(entry: registry.Entry) -> None:
    loaded = entry.load()
    fields = {field.name: field for field in dataclasses.fields(loaded) if field.init}
    assert [param.name for param in entry.params] == list(fields)
    assert entry.summary
    if entry.name == entry.family and not any(param.required for param in entry.params):
        assert entry.create() == loaded()
        assert dataclasses.asdict(loaded()) == entry.settings()
    assert os.fspath(entry.source_file).endswith(".py")
