"""DDN: its direction where the loss is saturated or flat."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustbench_defenses.attacks.ddn import DDN
from robustbench_defenses.core import rng
from robustbench_defenses.engine.protocol import Answer, Rows


def _step(gradient: Tensor) -> Tensor:
    """The first perturbation (B, C, H, W) of grey images under `gradient`."""
    count = len(gradient)
    rows = Rows(
        example=torch.arange(count),
        images=torch.full_like(gradient, 0.5),
        labels=torch.zeros(count, dtype=torch.int64),
        eps=torch.full((count,), torch.inf),
        target=torch.full((count,), -1),
        key=rng.run_keys(0, "ddn", torch.arange(count)),
        run=torch.zeros(count, dtype=torch.int64),
        rivals=torch.zeros(count, 0, dtype=torch.int64),
    )
    attack = DDN(init_norm=0.4)
    logits = torch.tensor([[1.0, 0.0]]).repeat(count, 1)
    state = attack.tell(attack.start(rows), rows, Answer(logits, gradient=gradient))
    return state.delta


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-30])
def test_only_the_direction_of_the_gradient_counts(scale: float) -> None:
    """A saturated loss has gradients whose squares vanish in float32."""
    gradient = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    delta = _step(gradient * scale)
    torch.testing.assert_close(delta, _step(gradient))
    cosine = torch.cosine_similarity(delta.flatten(1), gradient.flatten(1))
    assert (cosine > 0.999).all()


def test_a_gradient_of_zero_gives_a_random_direction_of_full_length() -> None:
    delta = _step(torch.zeros(8, 1, 4, 4))
    assert torch.allclose(delta.flatten(1).norm(dim=1), torch.tensor(0.42), atol=1e-4)
    assert len(torch.unique(delta.flatten(1), dim=0)) == 8
