"""What counts: a fresh float32 forward of the deployed subject, inside ball and box."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.norms import largest_allowed
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.caller import Cost
from robustbench_defenses.engine.verdict import Judge, evaluation_mode
from tests.engine import builders


def judge_of(model: Logits, count: int, batch_size: int = 1000) -> Judge:
    return Judge(model, "the subject", torch.arange(100, 100 + count), Cost(), batch_size)


def verdict(
    judge: Judge, points: Tensor, clean: Tensor, labels: Tensor, eps: float | Tensor,
    norm: str = "linf", target: Tensor | None = None,
) -> tuple[list[bool], list[float]]:  # fmt: skip
    count = len(points)
    counts, length = judge.judge(
        points, clean, labels, torch.full_like(labels, -1) if target is None else target,
        torch.as_tensor(eps, dtype=torch.float64).expand(count), norm, torch.arange(count),
    )  # fmt: skip
    return counts.tolist(), length.tolist()


ALWAYS_ONE = builders.Bands(9.0, 0.0)  # every image is class 1


def test_wrong_inside_ball_and_box_counts() -> None:
    clean = builders.grey(0.2, 0.2, 0.2)
    model = builders.Bands(0.2, 0.4)  # class 1 from 0.3
    points = builders.grey(0.35, 0.25, 0.2)
    counts, length = verdict(judge_of(model, 3), points, clean, torch.zeros(3).long(), 0.2)
    assert counts == [True, False, False]
    assert length == pytest.approx([0.15, 0.05, 0.0])


def test_the_tolerance_is_the_one_of_norms() -> None:
    eps = 0.25
    limit = float(largest_allowed(torch.tensor(eps, dtype=torch.float64)))
    clean = builders.grey(0.5, 0.5, 0.5)
    points = builders.grey(0.5 + eps, 0.5 + limit - 1e-12, 0.5 + limit + 1e-12)
    judge = judge_of(ALWAYS_ONE, 3)
    assert verdict(judge, points, clean, torch.zeros(3).long(), eps)[0] == [True, True, False]
    assert judge.invalid == 1


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_norm_is_the_attacks(norm: str) -> None:
    """A step of 0.1 in all four pixels: 0.1, 0.2 and 0.4 long."""
    clean, points = builders.grey(0.5), builders.grey(0.6)
    exact = {"linf": 0.1, "l2": 0.2, "l1": 0.4}[norm]
    judge = judge_of(ALWAYS_ONE, 1)
    assert verdict(judge, points, clean, torch.tensor([0]), exact, norm)[0] == [True]
    assert verdict(judge, points, clean, torch.tensor([0]), 0.99 * exact, norm)[0] == [False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e-9, 1 + 1e-9])
def test_points_outside_the_box_or_not_finite_never_count(bad: float) -> None:
    clean = builders.grey(0.5, 0.5)
    points = clean.clone()
    points[0, 0, 0, 0] = bad
    model = builders.Recorder(ALWAYS_ONE)
    judge = judge_of(model, 2)
    counts, _ = verdict(judge, points, clean, torch.zeros(2).long(), 10.0)
    assert counts == [False, True]
    assert judge.invalid == 1
    assert model.sizes == [1]  # an invalid point is not even asked about


def test_every_point_has_its_own_budget() -> None:
    clean, points = builders.grey(0.5, 0.5), builders.grey(0.6, 0.6)
    eps = torch.tensor([0.05, 0.15])
    assert verdict(judge_of(ALWAYS_ONE, 2), points, clean, torch.zeros(2).long(), eps)[0] == [
        False,
        True,
    ]


def test_targeted_counts_in_the_target_only() -> None:
    model = builders.Bands(0.1, 0.3, 0.5)
    clean, points = builders.grey(0.1, 0.1, 0.1), builders.grey(0.3, 0.5, 0.1)
    labels, target = torch.zeros(3).long(), torch.tensor([2, 2, 2])
    counts, _ = verdict(judge_of(model, 3), points, clean, labels, 1.0, target=target)
    assert counts == [False, True, False]


def test_cost_counts_what_was_asked() -> None:
    clean = builders.grey(0.5, 0.5, 0.5)
    points = builders.grey(0.6, 0.9, 0.6)
    judge = judge_of(ALWAYS_ONE, 3)
    verdict(judge, points, clean, torch.zeros(3).long(), 0.2)
    assert judge.cost.forward == 2
    assert judge.cost.backward == 0


def test_nothing_to_judge() -> None:
    judge = judge_of(ALWAYS_ONE, 1)
    empty = builders.grey(0.5)[:0]
    assert verdict(judge, empty, empty, torch.zeros(0).long(), 0.2) == ([], [])
    assert len(judge.logits(empty, torch.zeros(0).long())) == 0


def test_verdicts_are_float32_even_under_autocast() -> None:
    """Weights of 1 + 1/512 are 1 in bf16: only float32 sees the difference."""
    net = nn.Linear(4, 2, bias=False)
    net.weight.data = torch.stack([torch.full((4,), 1.0), torch.full((4,), 1 + 2**-9)])
    model = nn.Sequential(nn.Flatten(), net)
    images = builders.grey(0.5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).argmax(1).tolist() == [0]  # a tie in bf16
        logits = judge_of(model, 1).logits(images, torch.tensor([0]))
    assert logits.dtype == torch.float32
    assert logits.argmax(1).tolist() == [1]
    assert not logits.requires_grad


def test_the_subject_gets_plain_memory_layout() -> None:
    seen = []

    def model(images: Tensor) -> Tensor:
        seen.append(images.is_contiguous())
        return images.flatten(1)[:, :2]

    images = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    judge_of(model, 2).logits(images, torch.arange(2))
    assert seen == [True]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_batches_do_not_matter(batch_size: int) -> None:
    images = torch.rand(7, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    model = builders.Recorder(builders.Bands(0.2, 0.5, 0.8))
    found = judge_of(model, 7, batch_size).logits(images, torch.arange(7))
    torch.testing.assert_close(found, model.model(images), rtol=0, atol=0)
    assert max(model.sizes) <= batch_size


@pytest.mark.parametrize("error", [builders.cuda_memory, builders.cpu_memory, MemoryError])
def test_out_of_memory_halves_the_batch_and_remembers(error: Callable[[], Exception]) -> None:
    images = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    exact = builders.Bands(0.2, 0.5, 0.8)
    model = builders.Recorder(builders.limited(exact, 6, error))
    judge = judge_of(model, 20)
    torch.testing.assert_close(judge.logits(images, torch.arange(20)), exact(images))
    assert model.sizes == [20, 10, 5, 5, 5, 5]
    assert judge.cost.forward == 20
    judge.logits(images, torch.arange(20))
    assert model.sizes[6:] == [5, 5, 5, 5]


def test_memory_that_does_not_suffice_for_one_image_is_told() -> None:
    model = builders.limited(ALWAYS_ONE, 0, builders.cuda_memory)
    with pytest.raises(torch.OutOfMemoryError):
        judge_of(model, 3).logits(builders.grey(0.1, 0.2, 0.3), torch.arange(3))


def test_an_exception_names_subject_and_image() -> None:
    def model(images: Tensor) -> Tensor:
        if (images > 0.9).any():
            raise ValueError("too bright\nand more")
        return images.flatten(1)

    images = builders.grey(0.1, 0.2, 0.3, 0.95)
    message = "the subject raises ValueError .* test image 102: too bright$"
    with pytest.raises(UserError, match=message) as caught:
        judge_of(model, 4, batch_size=2).logits(images, torch.arange(4))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_users_own_error_is_passed_on() -> None:
    def model(images: Tensor) -> Tensor:
        raise UserError("no weights here", hint="rrd train")

    with pytest.raises(UserError, match=r"^no weights here$"):
        judge_of(model, 1).logits(builders.grey(0.1), torch.arange(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x.flatten(1).tolist(), "returns list, not a tensor"),
        (lambda x: None, "returns NoneType"),
        (lambda x: (x.flatten(1),), "returns tuple"),
        (lambda x: x, r"shape \(3, 1, 2, 2\) for 3 images"),
        (lambda x: x.flatten(1)[:, 0], r"shape \(3,\) for 3 images"),
        (lambda x: x.flatten(1)[:2], r"shape \(2, 4\) for 3 images"),
        (lambda x: x.flatten(1) / 0 * 0, "NaN for test image 100"),
        (lambda x: x.flatten(1).masked_fill(x.flatten(1) > 0.25, torch.inf), "infinite .* 102"),
        (lambda x: x.flatten(1).masked_fill(x.flatten(1) == 0.2, torch.nan), "NaN .* image 101"),
    ],
)
def test_unusable_logits_are_refused(model: Logits, message: str) -> None:
    with pytest.raises(UserError, match=message):
        judge_of(model, 3).logits(builders.grey(0.1, 0.2, 0.3), torch.arange(3))


def test_classes_ruled_out_by_minus_infinity_are_allowed() -> None:
    def model(images: Tensor) -> Tensor:
        logits = images.flatten(1).clone()
        logits[:, 0] = -torch.inf
        return logits

    logits = judge_of(model, 2).logits(builders.grey(0.1, 0.2), torch.arange(2))
    assert logits.argmax(1).tolist() == [1, 1]


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Sequential(nn.Dropout(0.5)))


def test_evaluation_mode_gives_every_part_its_own_mode_back() -> None:
    net, other = network().train(), network().eval()
    net[1].eval()
    before = [part.training for part in net.modules()]
    assert sorted(set(before)) == [False, True]
    with evaluation_mode(net, other, len):  # what is no module is left alone
        assert not any(part.training for part in net.modules())
    assert before == [part.training for part in net.modules()]
    assert not any(part.training for part in other.modules())


def test_evaluation_mode_ends_with_an_exception_too() -> None:
    net = network().train()

    def fail() -> None:
        with evaluation_mode(net):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(part.training for part in net.modules())
