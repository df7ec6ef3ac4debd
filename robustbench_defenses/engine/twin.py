"""The search twin: a frozen copy of the attack view that is cheap to ask.

Channels-last, bf16 where the machine has it, with the first layer forward in float32: images live
on a grid of 1/255, which bf16 cannot resolve near 1. Its answers only steer the search; what counts
is decided by `engine.verdict` on the deployed subject itself.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.draws import Randomness, seeded
from ..core.layout import any_layout
from ..core.view import Logits, View, read
from .folding import fold
from .layers import Bf16Conv, ExactFirst, InFloat32, is_plain
from .memory import out_of_memory

# Raised when the numbers of a bf16 search move for reasons that lie here.
VERSION = 3

# A bf16 copy whose logits differ more than this (share of the logit range, median over a batch)
# from float32 is not used: the network does something that bf16 cannot follow.
LARGEST_DEVIATION = 0.05
# Images that copies are compared on.
PROBE = 16


@dataclass(frozen=True)
class Twin:
    """`coarse` answers most rows; `fine` is the same network in float32 for rows that need it.

    `autocast`: `coarse` computes in bf16; `folded`: its batch normalizations are folded away, so
    its parts do not give what the network's do, and `fine` is asked for features; `layout`: of the
    images that they are given; `relaxed`: inside `any_layout`.
    """

    coarse: Logits
    fine: Logits
    autocast: bool
    randomness: Randomness | None = None
    layout: torch.memory_format = torch.contiguous_format
    relaxed: bool = False
    folded: bool = False

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
        exact = fine or (self.folded and taps is not None)
        with any_layout(self.relaxed), _bf16(self.autocast and not exact, images.device):
            logits, features = read(self.fine if exact else self.coarse, images, taps)
        return _widened(logits), tuple(_widened(one) for one in features)


def _bf16(active: bool, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if not active:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _widened(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.dtype == torch.float64:
        return values  # what is no tensor is refused, with the subject's name, by the caller
    return values.float()


def _copied(module: nn.Module) -> nn.Module:
    """A copy whose parameters are its own objects, but show the memory of the module's.

    Replacing their `data`, as a move to another layout or type does, leaves the module's alone.
    """
    shown: dict[int, Any] = {
        id(one): nn.Parameter(one.detach(), requires_grad=False)
        for one in module.parameters()
        if type(one) is nn.Parameter
    }
    return copy.deepcopy(module, shown)


def _frozen_copy(module: nn.Module, layout: torch.memory_format = torch.channels_last) -> nn.Module:
    twin = _copied(module).eval().requires_grad_(False)
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
    twin = _copied(fine)
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
        elif is_plain(layer):
            assert isinstance(layer, nn.Conv2d)
            layer.forward = Bf16Conv(layer)  # type: ignore[method-assign, assignment]
        elif type(layer) in (nn.Conv2d, nn.Linear):
            layer.to(torch.bfloat16)  # a subclass may use its weight in ways of its own
    return twin.eval()


def search_twin(view: View, images: Tensor, precision: str, features: bool = False) -> Twin:
    """The twin of `view` for images like `images` (N, C, H, W); `precision` as resolved;
    `features`: those of its parts will be asked, too.

    A subject that is no module, cannot be copied, or does not survive bf16 is searched in float32.
    """
    module, randomness = view.module, view.randomness
    as_it_is = Twin(view.logits, view.logits, autocast=False, randomness=randomness)
    if module is None:
        return as_it_is
    try:
        same = _copied(module).eval()
        deployed, _ = _asked(replace(as_it_is, coarse=same, fine=same), images[:PROBE])
        del same
    except Exception:  # a foreign module may refuse to be copied or moved in any way it likes
        return as_it_is
    for layout, relaxed in _layouts(images):
        try:
            fine = _frozen_copy(module, layout)
            plain = Twin(fine, fine, False, randomness, layout, relaxed)
            exact, few = _asked(plain, images[:PROBE])
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
    folded = None if features else _folded(plain, few, exact)
    try:
        with _repeatable(randomness, few), any_layout(relaxed):
            copied = _bf16_copy(folded or fine, few, layout)
        twin = replace(plain, coarse=copied, autocast=True, folded=folded is not None)
        coarse, few = _asked(twin, few)
        _differentiate(twin, few)
    except Exception:  # the same: whatever a foreign module does under autocast, float32 remains
        return plain
    exact = exact[: len(few)]
    spread = (exact.amax(1) - exact.amin(1)).clamp_min(1e-12)
    deviation = ((coarse - exact).abs().amax(1) / spread).median()
    return twin if bool(deviation <= LARGEST_DEVIATION) else plain


def _folded(plain: Twin, images: Tensor, exact: Tensor) -> nn.Module | None:
    """The network of `plain` with its batch normalizations folded away, if any can be: it has to
    answer `images` as before, `exact` (N, K)."""
    assert isinstance(plain.fine, nn.Module)
    try:
        network = _copied(plain.fine)
        given = images[:1].contiguous(memory_format=plain.layout)
        with _repeatable(plain.randomness, images), any_layout(plain.relaxed):
            count = fold(network, given)
        found, _ = _asked(replace(plain, coarse=network, fine=network), images[:4])
    except Exception:  # a foreign module may rely on its layers in any way it likes
        return None
    return network if count and _same(found, exact, 1e-3) else None


def _layouts(images: Tensor) -> Iterator[tuple[torch.memory_format, bool]]:
    """Layouts to try, and whether `any_layout` helps the network with it: the fastest first."""
    if images.dim() == 4:
        if images.device.type != "cpu":  # where what it costs would be seen
            yield torch.channels_last, False
        yield torch.channels_last, True
    yield torch.contiguous_format, False


def _same(found: Tensor, expected: Tensor, tolerance: float = 0.01) -> bool:
    """Logits (M, K) and (N, K) of the first images differ by no more than float32 rounds, mostly;
    `tolerance`: as a share of their range.

    A copy in another layout may be another function: `x.view(len(x), -1).sub_(mean)` changes x only
    where `view` need not copy.
    """
    count = min(len(found), len(expected))
    found, expected = found[:count], expected[:count]
    spread = expected.amax(1) - expected.amin(1)
    close = (found - expected).abs().amax(1) <= tolerance * spread + 1e-5 * expected.abs().amax(1)
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
