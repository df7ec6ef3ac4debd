"""Memory layout: networks run in channels-last, which is faster, whatever their code assumes.

`x.view(len(x), -1)` after a convolution is common, and needs the default layout. Inside
`any_layout` it does what `reshape` does, instead of an error. What is written through such a view
is then lost: code that does so computes something else, which `suits_channels_last` tells.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .draws import seeded

_VIEW = torch.Tensor.view
_RESHAPES = {_VIEW, torch.Tensor.reshape, torch.Tensor.flatten, torch.flatten, torch.reshape}


class _AnyLayout(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _RESHAPES:
            return func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        if isinstance(source, Tensor) and source.requires_grad and _is_channels_last(source):
            # Its gradient comes back in the default layout, which max pooling before it takes three
            # times as long to pass on (torch 2.13, CPU) as to convert.
            source.register_hook(_to_channels_last)  # type: ignore[no-untyped-call]
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            shape = args[1:] or tuple(kwargs.values())
            if func is not _VIEW or any(isinstance(one, torch.dtype) for one in shape):
                raise
            return args[0].reshape(*shape)


def any_layout(active: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Inside, `Tensor.view` takes tensors of any layout: where it cannot show them, it copies.

    `active` False: nothing changes. It costs a few microseconds for every operation of a pass.
    """
    return _AnyLayout() if active else contextlib.nullcontext()


def suits_channels_last(network: nn.Module, images: Tensor) -> bool:
    """The network (in the default layout; afterwards in channels-last) computes the same inside
    `any_layout`, forward and backward, from `images` (N, C, H, W) in channels-last.

    False too for one that fails on the way, or that answers at random.
    """
    try:
        expected = _answer(network, images)
        with any_layout():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            found = _answer(network, images.contiguous(memory_format=torch.channels_last))
    except Exception:  # a foreign module may fail in any way it likes
        return False
    return all(
        bool((one - other).norm() <= 0.01 * other.norm() + 1e-6)
        for one, other in zip(found, expected, strict=True)
    )


def _answer(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of a random sum of them by the images."""
    with seeded(0, images.device):
        images = images.clone().requires_grad_()
        logits = network(images.clone())  # a leaf could not be written to
        weight = torch.randn(logits.shape).to(logits)
        gradient = None
        if logits.requires_grad:
            (gradient,) = torch.autograd.grad((logits * weight).sum(), images, allow_unused=True)
    return logits.detach(), torch.zeros_like(images) if gradient is None else gradient


def _is_channels_last(values: Tensor) -> bool:
    return (
        values.dim() == 4
        and not values.is_contiguous()
        and values.is_contiguous(memory_format=torch.channels_last)
    )


def _to_channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)
