"""The networks that are attacked, with their images."""

from __future__ import annotations

from dataclasses import dataclass

import plain
import torch
from torch import Tensor, nn

from robustbench_defenses.core import plugins
from robustbench_defenses.data import source

# The data sets of the networks of `plain.py`.
OWN = {
    "natural": "mnist",
    "second": "mnist",
    "adversarial": "mnist",
    "digits": "digits",
    **dict.fromkeys(plain.RECIPES, "cifar10_part"),
}


@dataclass(frozen=True)
class Subject:
    """A network and the images (N, C, H, W) and labels (N,) on which it is attacked."""

    name: str
    dataset: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    precision: str

    def first(self, count: int) -> Subject:
        """The same on the first `count` images."""
        return Subject(
            self.name, self.dataset, self.model, self.images[:count], self.labels[:count],
            self.precision,
        )  # fmt: skip

    def predictions(self, images: Tensor) -> Tensor:
        """Classes (N,) by a float32 pass of the network itself."""
        with torch.no_grad():
            return torch.cat([self.model(part).argmax(1) for part in images.split(500)])


def network(name: str) -> nn.Module:
    """The network `name`: one of `plain.py`, or FILE.py:FACTORY."""
    if name in OWN:
        try:
            model: nn.Module = getattr(plain, name)()
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from None
        return model
    parsed = plugins.parse_reference(name)
    if parsed is None:
        raise SystemExit(f"{name} is neither FILE.py:FACTORY nor one of {', '.join(OWN)}")
    made: nn.Module = plugins.load_object(parsed)()
    return made.eval()


def subject(
    name: str, dataset: str | None, count: int, precision: str, predicted: bool, frozen: bool
) -> Subject:
    """The network `name` and the first `count` test images of `dataset` (None: of its own).

    `predicted`: the network's own predictions are the labels, so that every image is attacked;
    `frozen`: its weights ask for no gradients, which some peers would compute in vain.
    """
    model = network(name)
    model.requires_grad_(not frozen)
    if dataset is None:
        dataset = OWN.get(name, "mnist")
    if dataset == "cifar10_part":
        images, labels = plain.cifar10_part("test")
    elif dataset == "mnist":
        images, labels = plain.mnist("t10k")
    else:
        split = source.load(dataset, "test")
        images, labels = source.to_float(split.images), split.labels
    found = Subject(name, dataset, model, images[:count], labels[:count], precision)
    if predicted:
        labels = found.predictions(found.images)
        found = Subject(name, dataset, model, found.images, labels, precision)
    return found
