"""The search twin: a frozen copy of the attack view that is cheap to ask.

Channels-last, bf16 where the machine has it, with the first layer forward in float32: images live
on a grid of 1/255, which bf16 cannot resolve near 1. Its answers only steer the search; what counts
is decided by `engine.verdict` on the deployed subject itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.view import Logits, View

# A bf16 copy whose logits differ more than this (share of the logit range, median over a batch)
# from float32 is not used: the network does something that bf16 cannot follow.
LARGEST_DEVIATION = 0.05


@dataclass(frozen=True)
class Twin:
    """`coarse` answers most rows; `fine` is the same network in float32 for rows that need it."""

    coarse: Logits
    fine: Logits
    autocast: bool

    def __call__(self, images: Tensor, fine: bool = False) -> Tensor:
        """Logits (B, K) float32 (float64 for float64 images) of images (B, C, H, W)."""
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if fine or not self.autocast:
            logits = self.fine(images)
        else:
            with torch.autocast(images.device.type, dtype=torch.bfloat16):
                logits = self.coarse(images)
        return logits if logits.dtype == torch.float64 else logits.float()


class _ExactForward(torch.autograd.Function):
    """A convolution or linear layer: forward in float32, input gradient in bf16."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, layer: nn.Module, low: Tensor) -> Tensor:
        ctx.layer, ctx.low, ctx.shape = layer, low, images.shape
        return layer(images).to(low.dtype)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].to(ctx.low.dtype)
        layer = ctx.layer
        if isinstance(layer, nn.Linear):
            return (grad @ ctx.low).float(), None, None
        like = grad.new_empty(ctx.shape).contiguous(memory_format=torch.channels_last)
        # Asking for the input gradient alone: `conv2d_input` would also need an expanded input.
        result = torch.ops.aten.convolution_backward(
            grad,
            like,
            ctx.low,
            None,
            layer.stride,
            layer.padding,
            layer.dilation,
            False,
            [0] * len(layer.stride),
            layer.groups,
            [True, False, False],
        )[0]
        return result.float(), None, None


class ExactFirst(nn.Module):
    """The first layer of a bf16 twin: forward in float32, backward in bf16."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.low = layer.weight.detach().to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            result: Tensor = _ExactForward.apply(  # type: ignore[no-untyped-call]
                images.float(), self.layer, self.low
            )
        return result


def _frozen_copy(module: nn.Module) -> nn.Module:
    twin = copy.deepcopy(module).eval().requires_grad_(False)
    for weight in twin.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return twin


def _first_layer(module: nn.Module, images: Tensor) -> str | None:
    """Name of the first convolution or linear layer that runs, None where there is none."""
    order: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: order.append(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            module(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return order[0] if order else None


def _bf16_copy(fine: nn.Module, images: Tensor) -> nn.Module:
    """A copy of `fine` for autocast: weights cast once, the first layer exact in its forward."""
    twin = copy.deepcopy(fine)
    first = _first_layer(twin, images)
    for name, layer in list(twin.named_modules()):
        if type(layer) not in (nn.Conv2d, nn.Linear):
            continue  # a subclass may use its weight in ways of its own
        exact = name == first and not (
            isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str)
        )
        if exact and name:
            parent = twin.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], ExactFirst(layer))
        elif not exact:
            layer.to(torch.bfloat16)
    return twin


def search_twin(view: View, images: Tensor, precision: str) -> Twin:
    """The twin of `view` for images like `images` (N, C, H, W); `precision` as resolved.

    A subject that is no module, cannot be copied, or does not survive bf16 is searched in float32.
    """
    module = view.module
    if module is None:
        return Twin(view.logits, view.logits, autocast=False)
    try:
        fine = _frozen_copy(module)
        with torch.no_grad():
            exact = fine(images[:64].contiguous(memory_format=torch.channels_last))
    except Exception:  # a foreign module may refuse to be copied or moved in any way it likes
        return Twin(view.logits, view.logits, autocast=False)
    plain = Twin(fine, fine, autocast=False)
    if precision != "bf16" or images.dtype != torch.float32 or images.dim() != 4:
        return plain
    try:
        twin = Twin(_bf16_copy(fine, images), fine, autocast=True)
        with torch.no_grad():
            coarse = twin(images[:64])
    except Exception:  # the same: whatever a foreign module does under autocast, float32 remains
        return plain
    spread = (exact.amax(1) - exact.amin(1)).clamp_min(1e-12)
    deviation = ((coarse - exact).abs().amax(1) / spread).median()
    return twin if bool(deviation <= LARGEST_DEVIATION) else plain


def smallest_margin(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """How far (B,) a row is from counting as misclassified, as a share of its logit range."""
    wanted = torch.where(target >= 0, target, labels)
    own = logits.gather(1, wanted[:, None])[:, 0]
    mask = F.one_hot(wanted, logits.shape[1]).bool()
    other = logits.masked_fill(mask, -torch.inf).amax(1)
    gap = torch.where(target >= 0, other - own, own - other)
    return gap / (logits.amax(1) - logits.amin(1)).clamp_min(1e-12)
