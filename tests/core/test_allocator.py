"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from robustbench_defenses.core import allocator

# A block of 64 MiB is written and freed again and again; what that costs in page faults.
FAULTS = """
import resource, sys
import numpy as np
from robustbench_defenses.core.allocator import keep_freed_memory

kept = sys.argv[1] == "kept" and keep_freed_memory()
np.ones(8 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(8 << 20)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> tuple[bool, int]:
    chosen = {name: value for name, value in os.environ.items() if name not in allocator.CHOSEN}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=chosen, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


def test_a_freed_block_is_used_again() -> None:
    kept, few = _faults("kept")
    if not kept:
        pytest.skip("another C library than glibc")
    assert few * 100 < _faults("as it is")[1]


@pytest.mark.parametrize("name", allocator.CHOSEN)
def test_what_the_environment_chooses_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "0")
    monkeypatch.setattr(allocator.ctypes, "CDLL", _never)
    assert not allocator.keep_freed_memory()


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", _never)

    def unknown(name: str) -> str:
        raise ValueError(name)

    monkeypatch.setattr(allocator.os, "confstr", unknown)
    assert not allocator.keep_freed_memory()


def _never(*given: object) -> None:
    raise AssertionError("the C library was asked")
