"""A toy attack file, and folders to put it in."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

TOY = '''
    """Toy attack: adds a little.

    x' = x + step                                                             (1)
    """
    from dataclasses import dataclass, field
    from typing import ClassVar, Literal

    raise RuntimeError("a listing must not run this file")

    HALF = 0.5
    Start = Literal["image", "random"]

    CARD = {
        "object": "Toy",
        "version": 2,
        "source": "Nobody 2020, equation 1",
        "aliases": ["Tiny-Step"],
        "retired": ["old_toy"],
        "cost": "one pass",
        "params": {
            "steps": {"unit": "iterations", "min": 1, "max": 100, "papers": {"nobody": 7}},
            "rate": {"min": 0, "help": "how far"},
        },
        "variants": {
            "toy_l2": {"set": {"norm": "l2", "steps": 5}, "summary": "Toy in the L2 ball"},
        },
    }

    @dataclass(frozen=True)
    class Toy:
        norm: Literal["linf", "l2"] = "linf"
        steps: int = 40
        rate: float = 8 / 255
        start: Start = "image"
        random: bool = False
        name: str = "x"
        limit: float | None = None
        sizes: tuple[int, ...] = (1, 2)
        pair: "tuple[int, float]" = (1, 0.5)
        half: float = HALF
        empty: tuple[str, ...] = field(default_factory=tuple)
        kind: ClassVar[str] = "toy"
'''


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(folder: Path, name: str, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(dedent(source).lstrip("\n"), encoding="utf-8")
    return path
