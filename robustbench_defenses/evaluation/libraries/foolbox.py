"""foolbox's attacks (Rauber et al. 2020)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ...core.errors import UserError
from .call import Call, Make, Work, only


def _steps_of(attack: Any, otherwise: float) -> dict[str, Any]:
    """Step size in foolbox's terms; `otherwise`: share of eps where the attack does not say."""
    relative = otherwise if attack.rel_step is None else attack.rel_step
    return {"steps": attack.steps, "rel_stepsize": relative, "abs_stepsize": attack.step_size}


def _foolbox(kind: str, parameters: dict[str, Any], remark: str = "", restarts: int = 1) -> Call:
    """`kind`: the name of a class of `foolbox.attacks`."""
    run = functools.partial(_run_foolbox, kind, parameters)
    return Call(((kind, run),), restarts, remark)


def _run_foolbox(
    kind: str, parameters: dict[str, Any], model: nn.Module, work: Work
) -> Iterator[Tensor]:
    foolbox: Any = importlib.import_module("foolbox")
    asked = foolbox.PyTorchModel(model, bounds=(0, 1), device=work.images.device)
    if work.target is None:
        criterion: Any = foolbox.criteria.Misclassification(work.labels)
    else:
        criterion = foolbox.criteria.TargetedMisclassification(work.target)
    attack = getattr(foolbox.attacks, kind)(**parameters)
    eps = None if math.isinf(work.eps) else work.eps
    raw, _, _ = attack(asked, work.images, criterion, epsilons=eps)
    yield raw


def _run_from_start(
    kind: str, parameters: dict[str, Any], draws: int, blends: int, model: nn.Module, work: Work
) -> Iterator[Tensor]:
    """Attacks that begin at misclassified noise, or at images of other classes where those come.
    foolbox gives up on a whole batch where one image has no start; here that one is left out."""
    foolbox: Any = importlib.import_module("foolbox")
    wanted = work.labels if work.target is None else work.target
    criterion: Any = foolbox.criteria.Misclassification(work.labels)
    if work.target is not None:
        criterion = foolbox.criteria.TargetedMisclassification(work.target)
    asked = foolbox.PyTorchModel(model, bounds=(0, 1), device=work.images.device)
    starts = work.donors
    if starts is None:
        noise = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack
        starts = noise(directions=draws, steps=blends).run(asked, work.images, criterion)
    found = (model(starts).argmax(1) == wanted) == (work.target is not None)
    points = work.images.clone()
    if bool(found.any()):
        criterion = type(criterion)(wanted[found])
        attack = getattr(foolbox.attacks, kind)(**parameters)
        points[found] = attack.run(
            asked, work.images[found], criterion, starting_points=starts[found]
        )
    yield points


_PREFIX = {"linf": "Linf", "l2": "L2", "l1": "L1"}
_RESCALED = "rescales onto the L1 ball where ours projects onto ball and box, and has dense steps"
_LAST = "judges the last iterate alone"


def _fgsm(attack: Any, targeted: bool, classes: int) -> Call:
    only(attack, "foolbox", rel_step=1.0, loss="ce", logit_scale=1.0)
    if targeted:
        raise UserError("foolbox's FGSM takes no target class")
    kind = f"{_PREFIX[attack.norm]}FastGradientAttack"
    remark = _RESCALED if attack.norm == "l1" else ""
    return _foolbox(kind, {"random_start": attack.random_start}, remark)


def _mim(attack: Any, targeted: bool, classes: int) -> Call:
    only(attack, "foolbox", loss="ce", logit_scale=1.0)
    parameters = _steps_of(attack, 1 / attack.steps)
    if attack.decay == 0:
        return _foolbox(f"{_PREFIX[attack.norm]}BasicIterativeAttack", parameters, _LAST)
    kind = f"{_PREFIX[attack.norm]}MomentumIterativeFastGradientMethod"
    unit = "signs" if attack.norm == "linf" else "normalised steps"
    remark = f"adds up {unit} where ours adds up gradients; {_LAST}"
    return _foolbox(kind, parameters | {"momentum": attack.decay}, remark)


def _pgd(attack: Any, targeted: bool, classes: int) -> Call:
    only(attack, "foolbox", loss="ce", logit_scale=1.0)
    kind = f"{_PREFIX[attack.norm]}ProjectedGradientDescentAttack"
    parameters = _steps_of(attack, 0.25 if attack.norm == "l1" else 2.5 / attack.steps)
    parameters["random_start"] = attack.random_start
    remark = f"{_RESCALED}, of one length; {_LAST}" if attack.norm == "l1" else _LAST
    return _foolbox(kind, parameters, remark, attack.restarts)


def _ddn(attack: Any, targeted: bool, classes: int) -> Call:
    only(attack, "foolbox", loss="ce", logit_scale=1.0)
    named = {"init_epsilon": attack.init_norm, "steps": attack.steps, "gamma": attack.gamma}
    return _foolbox("DDNAttack", named, "its last point is not judged")


def _fmn(attack: Any, targeted: bool, classes: int) -> Call:
    from ...attacks.fmn import FIRST_STEPS

    step = FIRST_STEPS[attack.norm][0] if attack.step_size is None else attack.step_size
    named = {"steps": attack.steps, "max_stepsize": step, "gamma": attack.gamma}
    remark = "before its first success it keeps to the linear estimate of the radius"
    if attack.norm == "l2":
        remark += "; does not project"
    if attack.norm == "l1" and attack.step_size is None:
        remark += "; has one step size"
    kind = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"}[attack.norm]
    return _foolbox(kind, named, remark)


def _deepfool(attack: Any, targeted: bool, classes: int) -> Call:
    if targeted:
        raise UserError("foolbox's DeepFool takes no target class")
    names = ("steps", "candidates", "overshoot")
    differs = ["does not bisect to the boundary (refine)"] if attack.refine else []
    if not attack.sum_steps:
        differs.append("sums the steps outside the box (sum_steps)")
    remark = "; ".join(differs)
    return _foolbox(
        f"{_PREFIX[attack.norm]}DeepFoolAttack",
        {name: getattr(attack, name) for name in names},
        remark,
    )


def _cw(attack: Any, targeted: bool, classes: int) -> Call:
    named = {
        "binary_search_steps": attack.search_steps,
        "steps": attack.steps,
        "stepsize": attack.learning_rate,
        "confidence": attack.confidence,
        "initial_const": attack.const,
        "abort_early": attack.abort_early,
    }
    remark = "a batch stops as one"
    if attack.warm_start or attack.final_rate < 1:
        remark += "; each round starts at the image, and its rate does not fall"
    if attack.form != "tanh":
        remark += "; has the tanh form alone, in which pixels at 0 and 1 hardly move"
    return _foolbox("L2CarliniWagnerAttack", named, remark)


def _boundary(attack: Any, targeted: bool, classes: int) -> Call:
    only(attack, "foolbox", record_every=1, probe_every=10)
    named = {
        "steps": attack.steps,
        "spherical_step": attack.spherical_step,
        "source_step": attack.source_step,
        "step_adaptation": attack.adaptation,
    }
    return _started(attack, "BoundaryAttack", named, "the images of a batch share their noise")


def compiles() -> bool:
    """True where numba is there, without which foolbox has no Brendel-Bethge attack."""
    return importlib.util.find_spec("numba") is not None


def _brendel_bethge(attack: Any, targeted: bool, classes: int) -> Call:
    if not compiles():
        raise UserError("foolbox's Brendel-Bethge attack needs numba", hint="pip install numba")
    kind = {"linf": "LinfinityBrendelBethgeAttack"}.get(
        attack.norm, f"{_PREFIX[attack.norm]}BrendelBethgeAttack"
    )
    names = ("steps", "lr", "lr_num_decay", "momentum", "overshoot")
    named = {name: getattr(attack, name) for name in names}
    return _started(attack, kind, named, "its trust region grows with the batch")


def _started(attack: Any, kind: str, named: dict[str, Any], remark: str) -> Call:
    donors = attack.init == "images"
    if donors:
        remark += "; begins at the other image itself, without blends"
    run = functools.partial(_run_from_start, kind, named, attack.init_draws, attack.init_blends)
    return Call(((kind, run),), 1, remark, donors=donors)


CALLS: dict[str, Make] = {
    "fgsm": _fgsm,
    "mim": _mim,
    "pgd": _pgd,
    "ddn": _ddn,
    "fmn": _fmn,
    "deepfool": _deepfool,
    "cw": _cw,
    "boundary": _boundary,
    "brendel_bethge": _brendel_bethge,
}
