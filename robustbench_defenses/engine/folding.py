"""Batch normalization folded into the convolutions before it, for networks in evaluation mode.

There it is a fixed scale and shift of every channel, which the convolution takes over.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold(network: nn.Module, images: Tensor) -> int:
    """Fold, in place, what is seen to follow a convolution in a pass of `images`; returns how many.

    The layers stay where they are; a folded normalization passes on what it is given. A network
    that uses the output of a folded convolution elsewhere is another one afterwards: compare.
    """
    pairs = _pairs(network, images)
    for conv, norm in pairs:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
        )
        norm.forward = _unchanged  # type: ignore[method-assign, assignment]
    network.requires_grad_(False)
    return len(pairs)


def _pairs(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions and the normalizations that are given their outputs, both used once."""
    calls: Counter[nn.Module] = Counter()
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # held: an id may not be used again
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def seen(layer: nn.Module, given: Any, output: Any) -> None:
        calls[layer] += 1
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = layer, output, output._version
        elif isinstance(layer, nn.BatchNorm2d) and id(given[0]) in made:
            conv, values, version = made[id(given[0])]
            if values._version == version:
                pairs.append((conv, layer))

    handles = [one.register_forward_hook(seen) for one in network.modules() if _foldable(one)]
    try:
        with torch.no_grad():
            network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == 1 == calls[norm]]


def _foldable(layer: nn.Module) -> bool:
    """True for plain layers that nobody listens to, normalizations with statistics of their own."""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return False
    if type(layer) is nn.BatchNorm2d:
        return not layer.training and layer.running_mean is not None
    return type(layer) is nn.Conv2d


def _unchanged(values: Tensor) -> Tensor:
    return values
