"""What the layers of a bf16 twin compute in place of their own forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The library's convolution of bf16 numbers with a bias in float32 (CPU), where torch has it.
_WITH_BIAS = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)


def is_plain(layer: nn.Module) -> bool:
    """True for a convolution of torch's own with zero padding of a given size."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


@dataclass(frozen=True)
class _Shape:
    """How a kernel moves over its images."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> _Shape:
        padding = [int(size) for size in conv.padding]
        return cls(list(conv.stride), padding, list(conv.dilation), conv.groups)

    def forward(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of bf16 `images` (B, C, H, W) and `weight`; `bias` in float32 is added
        before the sum is rounded, where the library does so."""
        moves = (self.stride, self.padding, self.dilation)
        if bias is not None and images.device.type == "cpu" and _WITH_BIAS is not None:
            result: Tensor = _WITH_BIAS(
                images, weight, bias, self.padding, self.stride, self.dilation, self.groups,
                "none", [], None,
            )  # fmt: skip
            return result
        rounded = None if bias is None else bias.to(torch.bfloat16)
        return F.conv2d(images, weight, rounded, *moves, self.groups)

    def backward(self, grad: Tensor, like: Tensor, weight: Tensor) -> Tensor:
        """The gradient by the images, which have shape and layout of `like`."""
        result: Tensor = torch.ops.aten.convolution_backward(
            grad, like, weight, None, self.stride, self.padding, self.dilation, False, [0, 0],
            self.groups, [True, False, False],
        )[0]  # fmt: skip
        return result


class _CoarseConv(torch.autograd.Function):
    """A convolution in bf16 that keeps nothing for its backward pass."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, layer: Bf16Conv) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, maps.shape, maps.dtype
        ctx.layout = torch.contiguous_format
        if maps.is_contiguous(memory_format=torch.channels_last):
            ctx.layout = torch.channels_last
        return layer.moves.forward(maps.to(torch.bfloat16), layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer: Bf16Conv = ctx.layer
        grad = grads[0].to(torch.bfloat16)
        like = torch.empty(
            ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout
        )
        return layer.moves.backward(grad, like, layer.weight).to(ctx.dtype), None


class Bf16Conv:
    """The forward of a convolution of a bf16 twin whose bias stays in float32.

    A rounded bias shifts a whole channel, which no average over pixels takes back.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        conv.weight.data = conv.weight.data.to(torch.bfloat16)
        self.weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.moves = _Shape.of(conv)

    def __call__(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            result: Tensor = _CoarseConv.apply(maps, self)  # type: ignore[no-untyped-call]
        return result


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
        return layer.moves.forward(split, layer.split, layer.bias)

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
        self.moves = _Shape.of(conv)
        weight = conv.weight.detach()
        self.high = weight.to(torch.bfloat16)
        low = (weight - self.high).to(torch.bfloat16)
        split = torch.cat([self.high, self.high, low], 1)
        self.split = split.contiguous(memory_format=layout)
        self.bias = None if conv.bias is None else conv.bias.detach()
        # (C_in k k, C_out): from one output pixel to the input pixels under the kernel.
        self.columns = self.high.flatten(1).t().contiguous()

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """True for a plain convolution without groups."""
        return isinstance(layer, nn.Conv2d) and is_plain(layer) and layer.groups == 1

    def __call__(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            result: Tensor = _ExactConv.apply(images.float(), self)  # type: ignore[no-untyped-call]
        return result

    def input_gradient(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """Gradient (B, C, H, W) float32 from the one of the output (B, C_out, H', W') in bf16."""
        if len(self.columns) > self.MOST_COLUMNS:
            return self.moves.backward(grad, grad.new_empty(shape), self.high).float()
        count, channels, height, width = shape
        rows, cols = grad.shape[2:]
        pixels = grad.permute(0, 2, 3, 1).reshape(count, rows * cols, -1).transpose(1, 2)
        parts = torch.matmul(self.columns, pixels)  # (B, C k k, H' W')
        kernel = self.high.shape[2:]
        parts = parts.view(count, channels, *kernel, rows, cols)
        padding = self.moves.padding
        wide = torch.zeros(
            (count, channels, height + 2 * padding[0], width + 2 * padding[1]), device=grad.device
        )
        (s0, s1), (d0, d1) = self.moves.stride, self.moves.dilation
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
