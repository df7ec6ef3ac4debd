"""Every model call of a search: what is answered, counted, split and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_defenses.core.errors import UserError
from robustbench_defenses.core.view import Logits
from robustbench_defenses.engine.caller import Caller
from robustbench_defenses.engine.protocol import Query, Rows
from robustbench_defenses.engine.twin import Twin
from tests.engine import builders, oracles

COUNT = 9


def setting() -> tuple[torch.nn.Module, Rows]:
    model = oracles.convolution(2, 5)
    images = torch.rand(COUNT, 2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    return model, builders.rows(images, oracles.predicted(model, images), 0.1)


def caller(model: Logits | Twin, batch_size: int = 256) -> Caller:
    twin = model if isinstance(model, Twin) else builders.plain(model)
    queries = torch.zeros(COUNT, dtype=torch.int64)
    return Caller(twin, "the subject", torch.arange(100, 100 + COUNT), queries, batch_size)


def literal(
    model: Logits, points: Tensor, value: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    points = points.clone().requires_grad_()
    loss = value(model(points))
    return loss.detach(), torch.autograd.grad(loss.sum(), points)[0]


def test_gradient_of_the_loss() -> None:
    model, rows = setting()
    points = rows.images.clone()
    answer = caller(model).answer(Query(points), rows, None)
    loss, gradient = literal(
        model, points, lambda z: F.cross_entropy(z, rows.labels, reduction="none")
    )
    torch.testing.assert_close(answer.loss, loss)
    torch.testing.assert_close(answer.gradient, gradient)
    torch.testing.assert_close(answer.logits, model(points).detach())
    assert not points.requires_grad
    assert not answer.logits.requires_grad
    assert answer.class_gradients is None


def test_logits_alone_build_no_graph() -> None:
    model, rows = setting()
    asked = builders.Recorder(model)
    answer = caller(asked).answer(Query(rows.images, "logits"), rows, None)
    assert answer.gradient is None
    assert answer.loss is None
    assert not answer.logits.requires_grad


def test_logit_scale_concerns_the_loss_only() -> None:
    model, rows = setting()
    plain = caller(model).answer(Query(rows.images), rows, None)
    scaled = caller(model).answer(Query(rows.images, logit_scale=0.1), rows, None)
    torch.testing.assert_close(plain.logits, scaled.logits)
    loss, gradient = literal(
        model, rows.images, lambda z: F.cross_entropy(0.1 * z, rows.labels, reduction="none")
    )
    torch.testing.assert_close(scaled.loss, loss)
    torch.testing.assert_close(scaled.gradient, gradient)


def test_aim_directs_the_loss_not_the_verdict() -> None:
    model, rows = setting()
    aim = (rows.labels + 2) % 5
    aimed = caller(model).answer(Query(rows.images, aim=aim), rows, None)
    targeted = caller(model).answer(Query(rows.images), replace(rows, target=aim), None)
    torch.testing.assert_close(aimed.loss, targeted.loss)
    torch.testing.assert_close(aimed.gradient, targeted.gradient)
    assert (rows.target == -1).all()


def test_a_callable_loss_sees_the_rows() -> None:
    model, rows = setting()

    def loss(logits: Tensor, rows: Rows) -> Tensor:
        return logits[:, 0] * rows.eps

    answer = caller(model).answer(Query(rows.images, loss=loss), rows, None)
    torch.testing.assert_close(answer.loss, 0.1 * model(rows.images)[:, 0].detach())


def test_class_gradients() -> None:
    model, rows = setting()
    classes = torch.stack([rows.labels, (rows.labels + 1) % 5, (rows.labels + 3) % 5], 1)
    asked = caller(model)
    answer = asked.answer(Query(rows.images, "class_gradients", classes=classes), rows, None)
    assert answer.class_gradients is not None
    assert answer.class_gradients.shape == (COUNT, 3, 2, 6, 5)
    for m in range(3):
        _, gradient = literal(
            model, rows.images, lambda z, m=m: z.gather(1, classes[:, m : m + 1])[:, 0]
        )
        torch.testing.assert_close(answer.class_gradients[:, m], gradient)
    assert (asked.cost.forward, asked.cost.backward) == (COUNT, 3 * COUNT)


@pytest.mark.parametrize("want", ["gradient", "class_gradients"])
def test_a_subject_without_a_graph_has_gradient_zero(want: str) -> None:
    _, rows = setting()
    classes = rows.labels[:, None]
    for model in (
        lambda x: torch.ones(len(x), 5, dtype=torch.float64),
        lambda x: x.detach().flatten(1)[:, :5],
        torch.no_grad()(lambda x: x.flatten(1)[:, :5]),
        oracles.Constant(5),
    ):
        answer = caller(model).answer(Query(rows.images, want, classes=classes), rows, None)
        found = answer.gradient if want == "gradient" else answer.class_gradients
        assert found is not None
        assert (found == 0).all()


def test_passes_are_counted_per_example() -> None:
    model, rows = setting()
    asked = caller(model)
    few = builders.rows(rows.images[:4], rows.labels[:4], 0.1)
    few.example = torch.tensor([2, 2, 7, 0])  # two rows of one example
    asked.answer(Query(few.images), few, None)
    asked.answer(Query(few.images, "logits"), few, None)
    assert asked.queries.tolist() == [2, 0, 4, 0, 0, 0, 0, 2, 0]
    assert asked.cost.forward == 8
    assert asked.cost.backward == 4


def test_fine_rows_are_asked_in_float32_and_answers_keep_their_order() -> None:
    model, rows = setting()
    coarse, fine = builders.Recorder(lambda x: -model(x)), builders.Recorder(model)
    asked = caller(Twin(coarse, fine, autocast=True))
    mask = torch.tensor([True, False, False, True, False, True, False, False, False])
    answer = asked.answer(Query(rows.images, aim=rows.labels), rows, mask)
    sign = torch.where(mask, 1.0, -1.0).double()
    torch.testing.assert_close(answer.logits, sign[:, None] * model(rows.images).detach())
    assert (coarse.sizes, fine.sizes) == ([6], [3])
    for mask in (torch.ones(COUNT).bool(), torch.zeros(COUNT).bool(), None):
        both = asked.answer(Query(rows.images), rows, mask)
        used = fine if mask is not None and mask.all() else coarse
        torch.testing.assert_close(both.logits, used.model(rows.images).detach())
    assert asked.queries.tolist() == [4] * COUNT


@pytest.mark.parametrize("want", ["logits", "gradient", "class_gradients"])
@pytest.mark.parametrize("most", [1, 2, 4, 8])
@pytest.mark.parametrize("error", [builders.cuda_memory, builders.cpu_memory])
def test_out_of_memory_changes_no_answer(
    want: str, most: int, error: Callable[[], Exception]
) -> None:
    model, rows = setting()
    query = Query(rows.images, want, classes=rows.labels[:, None], aim=(rows.labels + 1) % 5)
    expected = caller(model).answer(query, rows, None)
    tight = caller(builders.limited(model, most, error))
    found = tight.answer(query, rows, None)
    for name in ("logits", "loss", "gradient", "class_gradients"):
        a, b = getattr(expected, name), getattr(found, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert tight.batch_size <= most
    assert tight.cost.forward == COUNT


def test_the_smaller_batch_is_remembered() -> None:
    model, rows = setting()
    recorder = builders.Recorder(builders.limited(model, 4, builders.cuda_memory))
    asked = caller(recorder)
    asked.answer(Query(rows.images), rows, None)
    assert recorder.sizes == [9, 4, 4, 1]
    asked.answer(Query(rows.images), rows, None)
    assert recorder.sizes[4:] == [4, 4, 1]


def test_memory_that_does_not_suffice_for_one_image_is_told() -> None:
    model, rows = setting()
    with pytest.raises(torch.OutOfMemoryError):
        caller(builders.limited(model, 0, builders.cuda_memory)).answer(
            Query(rows.images), rows, None
        )


@pytest.mark.parametrize("want", ["logits", "gradient"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z: z[:, 0], r"shape \(9,\) for 9 images"),
        (lambda z: z[:4], r"shape \(4, 5\) for 9 images"),
        (lambda z: (z, z), "returns tuple, not a tensor"),
        (lambda z: z.masked_fill(torch.arange(9)[:, None] == 3, torch.nan), "NaN .* image 103"),
        (lambda z: z / 0, "test image 100"),
    ],
)
def test_unusable_logits_are_refused(
    change: Callable[[Tensor], Tensor], message: str, want: str
) -> None:
    model, rows = setting()
    with pytest.raises(UserError, match=message):
        caller(lambda x: change(model(x))).answer(Query(rows.images, want), rows, None)


class _Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise NotImplementedError("no derivative")


def test_exceptions_name_subject_and_image() -> None:
    model, rows = setting()

    def raising(images: Tensor) -> Tensor:
        raise KeyError("x")

    with pytest.raises(UserError, match=r"the subject raises KeyError .* test image 100"):
        caller(raising).answer(Query(rows.images), rows, None)
    with pytest.raises(UserError, match=r"raises NotImplementedError .*: no derivative"):
        caller(lambda x: model(_Fails.apply(x))).answer(Query(rows.images), rows, None)


def test_an_attacks_own_fault_is_not_blamed_on_the_subject() -> None:
    model, rows = setting()

    def loss(logits: Tensor, rows: Rows) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        caller(model).answer(Query(rows.images, loss=loss), rows, None)


def test_weights_get_no_gradients() -> None:
    model, rows = setting()
    caller(model).answer(Query(rows.images), rows, None)
    assert all(weight.grad is None for weight in model.parameters())
