"""Memory layout: networks run in channels-last, which is faster, whatever their code assumes.

`x.view(len(x), -1)` after a convolution is common, and needs the default layout. Inside
`any_layout` it does what `reshape` does, instead of an error.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


def _is_channels_last(values: Tensor) -> bool:
    return (
        values.dim() == 4
        and not values.is_contiguous()
        and values.is_contiguous(memory_format=torch.channels_last)
    )


def _to_channels_last(grad: Tensor) -> Tensor:
    return grad.contiguous(memory_format=torch.channels_last)
