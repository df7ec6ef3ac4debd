"""Equal questions have equal keys; different ones do not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_defenses.core.identity import (
    canonical,
    file_digest,
    short_hash,
    tensors_digest,
)

GOLDEN_HASH = "56803cc2"
GOLDEN_TENSORS = "2af02f510964aeb0"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (0, -0.0),
        (0.0, -0.0),
        (10**16, 1e16),
        ([1, 2.0], (1.0, 2)),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}),
        ({1: "x"}, {"1": "x"}),
        (np.int64(5), 5),
        (np.float64(0.3), 0.3),
        (np.float32(0.5), 0.5),
        ({"x": {"z": [0.1], "y": None}}, {"x": {"y": None, "z": [0.1]}}),
    ],
)
def test_equal_values_have_equal_text(a: object, b: object) -> None:
    assert canonical(a) == canonical(b)
    assert short_hash(a) == short_hash(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (0.1, 0.1 + 1e-16),
        (1, True),
        (0, False),
        (None, "null"),
        (1, "1"),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 1, "b": None}),
        (0.3, 0.30000000000000004),
        ([[1], 2], [1, [2]]),
        (float("inf"), float("-inf")),
        ("a", "A"),
    ],
)
def test_different_values_have_different_text(a: object, b: object) -> None:
    assert canonical(a) != canonical(b)


def test_canonical_text_is_compact_sorted_json() -> None:
    assert canonical({"b": [1.0, 0.5], "a": "ä"}) == '{"a":"ä","b":[1,0.5]}'
    assert canonical([float("inf"), float("nan")]) == '["inf","nan"]'
    assert canonical(Path("a") / "b") == '"a/b"'


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=5), st.randoms())
def test_order_of_keys_never_matters(value: dict[str, Any], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical(dict(items)) == canonical(value)


def test_short_hash_is_the_head_of_sha256() -> None:
    whole = hashlib.sha256(b'{"a":1}').hexdigest()
    assert short_hash({"a": 1.0}) == whole[:8]
    assert short_hash({"a": 1}, 64) == whole


def test_file_digest(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_tensors_digest_sees_names_types_shapes_and_values() -> None:
    base = {"a": torch.arange(6.0), "b": torch.tensor(True)}
    digest = tensors_digest(base)
    assert digest == tensors_digest(dict(reversed(base.items())))
    assert digest == tensors_digest(
        {"a": torch.arange(6.0).clone().requires_grad_(), "b": base["b"]}
    )
    others = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"].view(2, 3), "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
        {"a": base["a"], "b": torch.tensor(False)},
        {"a": base["a"]},
        {},
    ]
    assert len({digest, *(tensors_digest(other) for other in others)}) == 8


def test_tensors_digest_does_not_depend_on_layout() -> None:
    image = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    last = image.contiguous(memory_format=torch.channels_last)
    assert tensors_digest({"x": image}) == tensors_digest({"x": last})
    assert tensors_digest({"x": image[:, 1:]}) == tensors_digest({"x": image[:, 1:].clone()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.uint8])
def test_tensors_digest_takes_any_type(dtype: torch.dtype) -> None:
    one, two = torch.ones(3).to(dtype), torch.tensor([1, 1, 2]).to(dtype)
    assert tensors_digest({"x": one}) != tensors_digest({"x": two})
    assert tensors_digest({"x": one}) == tensors_digest({"x": one.clone()})
    assert tensors_digest({"x": one[:0]}) != tensors_digest({"x": one})


def test_golden_digests() -> None:
    """Stored results are found by these: they may not move unnoticed."""
    question = {"attack": "pgd_linf", "grid": (0.0, 0.1), "parameters": {"steps": 40, "eps": None}}
    assert short_hash(question) == GOLDEN_HASH
    assert tensors_digest({"w": torch.arange(4.0), "n": torch.tensor(7)})[:16] == GOLDEN_TENSORS
