"""foolbox: PGD and its kin, and attacks that search the nearest point."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from . import Ask, Attack, in_batches

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox
    from foolbox import attacks

PACKAGE = "foolbox"


def _run(attack: Any, model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """The points that `attack` returns, clipped to the budget where there is one."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    budget = None if eps != eps else eps
    _, points, _ = attack(wrapped, images, labels, epsilons=budget)
    return points


def _stepped(kinds: dict[str, Any], **options: Any) -> Attack:
    """An attack of `steps` steps of length `step`, by norm."""

    def run(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
        attack = kinds[ask.norm](abs_stepsize=ask.step, steps=ask.steps, **options)
        return _run(attack, model, images, labels, ask.eps)

    return in_batches(run)


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """One step from the image."""
    attack = attacks.LinfFastGradientAttack(random_start=False)
    return _run(attack, model, images, labels, ask.eps)


def ddn(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """DDN."""
    return _run(attacks.DDNAttack(steps=ask.steps), model, images, labels, ask.eps)


def fmn(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """FMN with our first step."""
    kinds = {"linf": attacks.LInfFMNAttack, "l2": attacks.L2FMNAttack}
    attack = kinds[ask.norm](steps=ask.steps, max_stepsize=ask.step)
    return _run(attack, model, images, labels, ask.eps)


def deepfool(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """DeepFool over all ten classes."""
    kinds = {"linf": attacks.LinfDeepFoolAttack, "l2": attacks.L2DeepFoolAttack}
    attack = kinds[ask.norm](steps=ask.steps, candidates=10)
    return _run(attack, model, images, labels, ask.eps)


def cw(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """C&W. Where it finds nothing it returns a black image: no result, so the clean image here."""
    attack = attacks.L2CarliniWagnerAttack(
        binary_search_steps=ask.searches, steps=ask.steps, stepsize=ask.step
    )
    points = _run(attack, model, images, labels, ask.eps)
    black = (points == 0).flatten(1).all(1).view(-1, 1, 1, 1)
    return torch.where(black, images, points)


def boundary(model: nn.Module, images: Tensor, labels: Tensor, ask: Ask) -> Tensor:
    """Boundary attack from its own starting points, blended noise. Where one image has none it
    would refuse all of them: such images start from another one that is classified otherwise."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    first = attacks.LinearSearchBlendedUniformNoiseAttack(steps=50)
    starts = first.run(wrapped, images, foolbox.Misclassification(labels))
    with torch.no_grad():
        classes = model(images).argmax(1)
        for row in (model(starts).argmax(1) == labels).nonzero()[:, 0].tolist():
            starts[row] = images[classes != labels[row]][0]
    made: tuple[Tensor, Tensor, Tensor] = attacks.BoundaryAttack(steps=ask.steps)(
        wrapped, images, labels, epsilons=None, starting_points=starts
    )
    return made[1]


_BIM = _stepped({"linf": attacks.LinfBasicIterativeAttack}, random_start=False)
_PGD = _stepped({"linf": attacks.LinfPGD, "l2": attacks.L2PGD})

ATTACKS: dict[str, Attack] = {
    "fgsm": in_batches(fgsm),
    "bim": _BIM,
    "pgd": _PGD,
    "pgd_l2": _PGD,
    "ddn": in_batches(ddn),
    "fmn": in_batches(fmn),
    "fmn_l2": in_batches(fmn),
    "deepfool": in_batches(deepfool),
    "deepfool_linf": in_batches(deepfool),
    "cw": in_batches(cw),
    "boundary": in_batches(boundary),
}
