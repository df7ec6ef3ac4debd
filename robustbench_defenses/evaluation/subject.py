"""Subjects: what a user names becomes a deployed module, its attack views and its identity."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import plugins
from ..core.draws import Randomness, randomness_of
from ..core.errors import UserError
from ..core.identity import short_hash, tensors_digest
from ..core.view import Logits, View
from ..training import runs
from . import schema
from .foreign import code_digest, tensors_of


@dataclass(frozen=True)
class Subject:
    """A subject ready to be attacked: `views[0]` is the strongest known; `about` is its identity.

    `dataset`: what it was trained on, None for a model from the user's file; `code`: digest of
    what decides a foreign model's answers beside its weights (those of ours have versions);
    `trained_eps`: the budget of its training, None where it had none.
    """

    about: schema.Subject
    deployed: Logits
    views: tuple[View, ...]
    dataset: str | None
    code: str = ""
    trained_eps: float | None = None

    @property
    def name(self) -> str:
        return self.about.name

    def view(self, name: str | None) -> View:
        """The attack view called `name` (None: the strongest known)."""
        if name is None:
            return self.views[0]
        for view in self.views:
            if view.name == name:
                return view
        known = ", ".join(view.name for view in self.views)
        raise UserError(f"{self.name} has no view {name!r}", hint=f"it has: {known}")


def resolve(reference: str | nn.Module, results_dir: Path, device: torch.device) -> Subject:
    """The subject behind a run id, prefix, folder, `last`, or `FILE.py:FACTORY`; or a module."""
    if isinstance(reference, nn.Module):
        return _foreign(type(reference).__name__, reference.to(device), None)
    if (Path(reference) / "run.json").is_file():  # whatever signs the folder's name has
        return _run_subject(reference, "best", {}, results_dir, device)
    file = plugins.parse_reference(reference)
    if file is not None:
        return _file_subject(file, reference, device)
    name, checkpoint, options = runs.parse_subject(reference)
    return _run_subject(name, checkpoint, options, results_dir, device)


def _run_subject(
    name: str, checkpoint: str, options: dict[str, str], results_dir: Path, device: torch.device
) -> Subject:
    run = runs.load_run(name, results_dir)
    module = run.deployed(checkpoint, options).to(device)
    views = tuple(run.views(checkpoint, options))
    for view in views:
        if view.module is not None:
            view.module.to(device).eval()
    suffix = "" if checkpoint == "best" else f"@{checkpoint}"
    if options:
        suffix += "[" + ",".join(f"{key}={value}" for key, value in sorted(options.items())) + "]"
    about = schema.Subject(
        id=run.id + suffix,
        kind="run",
        name=run.id + suffix,
        defense=run.info.defense,
        model=run.info.model,
        preset=run.info.preset,
        seed=run.info.seed,
        checkpoint=checkpoint,
        options=dict(options),
        weights=tensors_digest(module.state_dict()),
        **_randomness(randomness_of(module)),
    )
    trained = run.info.settings.get("defense", {}).get("eps")
    trained_eps = float(trained) if isinstance(trained, int | float) else None
    return Subject(about, module, views, run.info.dataset, trained_eps=trained_eps)


def _file_subject(file: plugins.Reference, reference: str, device: torch.device) -> Subject:
    factory = plugins.load_object(file)
    if not callable(factory):
        raise UserError(
            f"{reference} is {type(factory).__name__}, not a callable without arguments"
        )
    _check_signature(factory, reference)
    # stdout belongs to our answer.
    with plugins.user_code(file.file), contextlib.redirect_stdout(sys.stderr):
        made = factory()
        if isinstance(made, nn.Module):
            made = made.to(device)
    if not callable(made):
        raise UserError(
            f"{reference} returns {type(made).__name__}",
            hint="it must return a torch.nn.Module or a callable from images to logits",
        )
    return _foreign(reference, made, file.file)


def _check_signature(factory: Callable[..., Any], reference: str) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise UserError(
            f"{reference} needs arguments", hint="a factory is called without arguments"
        ) from None
    except ValueError:
        return  # a builtin without a readable signature: calling it will tell


def _foreign(name: str, deployed: Logits, file: Path | None) -> Subject:
    where, _, function = name.rpartition(":")
    weights, code = tensors_digest(tensors_of(deployed)), code_digest(deployed, file)
    label = f"{Path(where).stem or 'model'}-{function}-{short_hash([function, weights, code])}"
    random = randomness_of(deployed)
    about = schema.Subject(id=label, kind="file", name=name, weights=weights, **_randomness(random))
    view = View("deployed", deployed)
    if random is not None:
        view = View("deployed", deployed, True, random.draws, random.aggregation, random.eot)
    return Subject(about, deployed, (view,), None, code)


def _randomness(random: Randomness | None) -> dict[str, Any]:
    """What a subject's identity says of its randomness."""
    if random is None:
        return {"random": False, "draws": 1}
    return {"random": True, "draws": random.draws, "aggregation": random.aggregation}
