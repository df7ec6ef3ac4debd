"""The search twin: a frozen copy of the attack view that is cheap to ask.

Channels-last, bf16 where the machine has it, with the first layer forward in float32: images live
on a grid of 1/255, which bf16 cannot resolve near 1. Its answers only steer the search; what counts
is decided by `engine.verdict` on the deployed subject itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.draws import Randomness, seeded
from ..core.layout import any_layout
from ..core.view import Logits, View, read
from .memory import out_of_memory

# Raised when the numbers of a bf16 search move for reasons that lie here.
VERSION = 2

# A bf16 copy whose logits differ more than this (share of the logit range, median over a batch)
# from float32 is not used: the network does something that bf16 cannot follow.
LARGEST_DEVIATION = 0.05


@dataclass(frozen=True)
class Twin:
    """`coarse` answers most rows; `fine` is the same network in float32 for rows that need it.

    `layout`: of the images that they are given; `relaxed`: inside `any_layout`.
    """

    coarse: Logits
    fine: Logits
    autocast: bool
    randomness: Randomness | None = None
    layout: torch.memory_format = torch.contiguous_format
    relaxed: bool = False

    def __call__(self, images: Tensor, fine: bool = False) -> Tensor:
        """Logits (B, K) float32 (float64 for float64 images) of images (B, C, H, W)."""
        return self.see(images, fine)[0]

    def see(
        self, images: Tensor, fine: bool = False, taps: tuple[str, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, K) and the features (B, D) of `taps`, in float32 (float64); one draw of a
        random subject."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=self.layout)
        with any_layout(self.relaxed):
            if fine or not self.autocast:
                logits, features = read(self.fine, images, taps)
            else:
                with torch.autocast(images.device.type, dtype=torch.bfloat16):
                    logits, features = read(self.coarse, images, taps)
        return _widened(logits), tuple(_widened(one) for one in features)


def _widened(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype == torch.float64:
        return values  # what is no tensor is refused, with the subject's name, by the caller
    return values.float()


class _ExactConv(torch.autograd.Function):
    """A convolution whose forward sees its input and weight to about 16 bits, in bf16 products.

    Input and weight are split into a high and a low bf16 part; the three products that matter are
    one convolution over three times the channels, summed in float32 by the hardware. Images have
    few channels, so this costs a fraction of a float32 convolution.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, layer: ExactFirst) -> Tensor:
        ctx.layer, ctx.shape = layer, images.shape
        high = images.to(torch.bfloat16)
        low = (images - high).to(torch.bfloat16)
        split = torch.cat([high, low, high], 1).contiguous(memory_format=layer.layout)
        return F.conv2d(split, layer.split, layer.bias, layer.stride, layer.padding, layer.dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer: ExactFirst = ctx.layer
        return layer.input_gradient(grads[0].to(torch.bfloat16), ctx.shape), None


class ExactFirst:
    """The forward of the first convolution of a bf16 twin: it resolves steps far below 1/256."""

    # Up to so many columns (input channels x kernel size) the input gradient is one matrix product
    # and that many shifted sums; measured 3.4 times faster than the library's at 25.
    MOST_COLUMNS = 80

    def __init__(self, conv: nn.Conv2d, layout: torch.memory_format) -> None:
        self.layout = layout
        self.stride, self.dilation = conv.stride, conv.dilation
        self.padding = [int(size) for size in conv.padding]
        weight = conv.weight.detach()
        self.high = weight.to(torch.bfloat16)
        low = (weight - self.high).to(torch.bfloat16)
        split = torch.cat([self.high, self.high, low], 1)
        self.split = split.contiguous(memory_format=layout)
        self.bias = None if conv.bias is None else conv.bias.detach().to(torch.bfloat16)
        # (C_in k k, C_out): from one output pixel to the input pixels under the kernel.
        self.columns = self.high.flatten(1).t().contiguous()

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """True for a plain convolution without groups and with zero padding."""
        return (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )

    def __call__(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            result: Tensor = _ExactConv.apply(images.float(), self)  # type: ignore[no-untyped-call]
        return result

    def input_gradient(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Gradient (B, C, H, W) float32 from the one of the output (B, C_out, H', W') in bf16."""
        if len(self.columns) > self.MOST_COLUMNS:
            like = grad.new_empty(shape)
            result: Tensor = torch.ops.aten.convolution_backward(
                grad, like, self.high, None, self.stride, self.padding, self.dilation, False,
                [0, 0], 1, [True, False, False],
            )[0]  # fmt: skip
            return result.float()
        count, channels, height, width = shape
        rows, cols = grad.shape[2:]
        pixels = grad.permute(0, 2, 3, 1).reshape(count, rows * cols, -1).transpose(1, 2)
        parts = torch.matmul(self.columns, pixels)  # (B, C k k, H' W')
        kernel = self.high.shape[2:]
        parts = parts.view(count, channels, *kernel, rows, cols)
        padding = self.padding
        wide = torch.zeros(
            (count, channels, height + 2 * padding[0], width + 2 * padding[1]), device=grad.device
        )
        (s0, s1), (d0, d1) = self.stride, self.dilation
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                top, left = i * d0, j * d1
                wide[
                    :,
                    :,
                    top : top + s0 * (rows - 1) + 1 : s0,
                    left : left + s1 * (cols - 1) + 1 : s1,
                ] += parts[:, :, i, j]
        return wide[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width]


class InFloat32:
    """The forward of a layer of a bf16 twin that is computed in float32 both ways."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, values: Tensor, *more: Any, **named: Any) -> Any:
        with torch.autocast(values.device.type, enabled=False):
            return self.forward(values.float(), *more, **named)


def _frozen_copy(module: nn.Module, layout: torch.memory_format = torch.channels_last) -> nn.Module:
    twin = copy.deepcopy(module).eval().requires_grad_(False)
    for weight in twin.parameters():
        if weight.dim() == 4:
            # `contiguous` would leave weights of one channel as they are, which lie alike in both
            # layouts: their strides decide the layout of all that follows.
            weight.data = weight.data.to(memory_format=layout)
    return twin


def _order_of_layers(module: nn.Module, images: Tensor) -> list[nn.Module]:
    """The convolutions and linear layers, as they run."""
    order: list[nn.Module] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, _: order.append(layer))
        for layer in module.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            module(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return order


def _bf16_copy(
    fine: nn.Module, images: Tensor, layout: torch.memory_format = torch.channels_last
) -> nn.Module:
    """A copy of `fine` for autocast: weights cast once, the first layer exact in its forward, the
    last one in float32.

    In bf16 logits of 16 would lie on a grid of 1/8: no random search sees that it improves.
    The layers stay where they are, under all their names and with their hooks; only what they
    compute changes.
    """
    twin = copy.deepcopy(fine)
    order = _order_of_layers(twin, images)
    for layer in twin.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        first, last = layer in order[:1], layer in order[-1:]
        if first and ExactFirst.fits(layer):
            assert isinstance(layer, nn.Conv2d)
            layer.forward = ExactFirst(layer, layout)  # type: ignore[method-assign, assignment]
        elif first or last:
            layer.forward = InFloat32(layer.forward)  # type: ignore[method-assign, assignment]
        elif type(layer) in (nn.Conv2d, nn.Linear):
            layer.to(torch.bfloat16)  # a subclass may use its weight in ways of its own
    return twin.eval()


def search_twin(view: View, images: Tensor, precision: str) -> Twin:
    """The twin of `view` for images like `images` (N, C, H, W); `precision` as resolved.

    A subject that is no module, cannot be copied, or does not survive bf16 is searched in float32.
    """
    module, randomness = view.module, view.randomness
    as_it_is = Twin(view.logits, view.logits, autocast=False, randomness=randomness)
    if module is None:
        return as_it_is
    try:
        same = copy.deepcopy(module).eval()
        deployed, _ = _asked(replace(as_it_is, coarse=same, fine=same), images[:64])
        del same
    except Exception:  # a foreign module may refuse to be copied or moved in any way it likes
        return as_it_is
    for layout, relaxed in _layouts(images):
        try:
            fine = _frozen_copy(module, layout)
            plain = Twin(fine, fine, False, randomness, layout, relaxed)
            exact, few = _asked(plain, images[:64])
            # Random draws lie otherwise in another layout.
            if randomness is None and not _same(exact, deployed):
                continue
            _differentiate(plain, few)
            break
        except Exception:  # nor need it run in every layout
            continue
    else:
        return as_it_is
    if precision != "bf16" or images.dtype != torch.float32 or images.dim() != 4:
        return plain
    try:
        with _repeatable(randomness, few), any_layout(relaxed):
            copied = _bf16_copy(fine, few, layout)
        twin = replace(plain, coarse=copied, autocast=True)
        coarse, few = _asked(twin, few)
        _differentiate(twin, few)
    except Exception:  # the same: whatever a foreign module does under autocast, float32 remains
        return plain
    exact = exact[: len(few)]
    spread = (exact.amax(1) - exact.amin(1)).clamp_min(1e-12)
    deviation = ((coarse - exact).abs().amax(1) / spread).median()
    return twin if bool(deviation <= LARGEST_DEVIATION) else plain


def _layouts(images: Tensor) -> Iterator[tuple[torch.memory_format, bool]]:
    """Layouts to try, and whether `any_layout` helps the network with it: the fastest first."""
    if images.dim() == 4:
        if images.device.type != "cpu":  # where what it costs would be seen
            yield torch.channels_last, False
        yield torch.channels_last, True
    yield torch.contiguous_format, False


def _same(found: Tensor, expected: Tensor) -> bool:
    """Logits (M, K) and (N, K) of the first images differ by no more than float32 rounds, mostly.

    A copy in another layout may be another function: `x.view(len(x), -1).sub_(mean)` changes x only
    where `view` need not copy.
    """
    count = min(len(found), len(expected))
    found, expected = found[:count], expected[:count]
    spread = expected.amax(1) - expected.amin(1)
    close = (found - expected).abs().amax(1) <= 0.01 * spread + 1e-5 * expected.abs().amax(1)
    return bool(close.double().mean() > 0.5)


def _differentiate(twin: Twin, images: Tensor) -> None:
    """One backward pass to the first image: code of the network's own may run in it, and fail."""
    point = images[:1].clone().requires_grad_()
    with torch.enable_grad(), _repeatable(twin.randomness, images):
        logits = twin(point)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), point, allow_unused=True)


def _asked(twin: Twin, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (M, K) of the first images, and these: fewer where the memory does not suffice."""
    while True:
        try:
            with torch.no_grad(), _repeatable(twin.randomness, images):
                return twin(images), images
        except Exception as error:
            if len(images) <= 1 or not out_of_memory(error):
                raise
            images = images[: len(images) // 2]


def _repeatable(
    randomness: Randomness | None, images: Tensor
) -> contextlib.AbstractContextManager[None]:
    """Around calls that are to be compared: a random subject draws the same numbers."""
    if randomness is None:
        return contextlib.nullcontext()
    return seeded(0, images.device)


def smallest_margin(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """How far (B,) a row is from counting as misclassified, as a share of its logit range."""
    wanted = torch.where(target >= 0, target, labels)
    own = logits.gather(1, wanted[:, None])[:, 0]
    mask = F.one_hot(wanted, logits.shape[1]).bool()
    other = logits.masked_fill(mask, -torch.inf).amax(1)
    gap = torch.where(target >= 0, other - own, own - other)
    return gap / (logits.amax(1) - logits.amin(1)).clamp_min(1e-12)
