"""Trained runs on disk: what was trained, how, and the modules that come back from it.

<results>/runs/<run-id>/run.json
                        weights/{last,best,step-N}.safetensors
                        log.jsonl
                        resume/            while the run is unfinished
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import files
from ..core.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from ..core.view import View
    from ..defenses.base import Parts

SCHEMA = "rrd.run/1"


@dataclass(frozen=True)
class RunInfo:
    """The content of run.json.

    `status`: unfinished, finished or diverged; `dataset`, `defense`, `model` are names as the
    registry finds them; `settings` are complete, by train, defense and model; `phases`: name and
    epochs of each; `best`: checkpoint chosen (epoch of all phases, metric, value); `weights`:
    digests by checkpoint.
    """

    id: str
    status: str
    dataset: str
    data_digest: str
    shape: tuple[int, int, int]
    classes: int
    defense: str
    defense_version: int
    variant: str | None
    model: str
    model_version: int
    preset: str
    seed: int
    settings: dict[str, dict[str, Any]]
    precision: str
    device: str
    threads: int
    schema: str = SCHEMA
    parameters: int = 0
    training_images: int = 0
    validation_images: int = 0
    phases: list[dict[str, Any]] = field(default_factory=list)
    epochs_done: int = 0
    best: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    weights: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    samples_per_second: float = 0.0
    warnings: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    command: str = ""
    started: str = ""
    finished: str | None = None

    def write(self, folder: Path) -> None:
        """Write run.json into the run's folder."""
        files.write_json(folder / "run.json", dataclasses.asdict(self))


def read_info(folder: Path) -> RunInfo:
    """The run.json of a folder; a damaged one, or one of another schema, is a `UserError`."""
    path = folder / "run.json"
    content = files.read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a run of this version ({SCHEMA})")
    known = {item.name: item for item in dataclasses.fields(RunInfo)}
    missing = [
        name
        for name, item in known.items()
        if name not in content
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    content["shape"] = tuple(content["shape"])
    return RunInfo(**{name: value for name, value in content.items() if name in known})


@dataclass(frozen=True)
class Run:
    """A trained run: its folder and what run.json says."""

    folder: Path
    info: RunInfo

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def finished(self) -> bool:
        return self.info.status == "finished"

    def checkpoints(self) -> list[str]:
        """Names of the stored checkpoints: best, last, step-N in the order of N."""
        found = [path.stem for path in (self.folder / "weights").glob("*.safetensors")]
        return sorted(found, key=lambda name: (name.startswith("step-"), len(name), name))

    def weights_path(self, checkpoint: str = "best") -> Path:
        """The file of a checkpoint; a name that is not stored is a `UserError`."""
        path = self.folder / "weights" / f"{checkpoint}.safetensors"
        if not re.fullmatch(r"best|last|step-\d+", checkpoint):
            raise UserError(f"unknown checkpoint {checkpoint!r}", hint="best, last or step-N")
        if not path.is_file():
            has = ", ".join(self.checkpoints()) or "none"
            raise UserError(
                f"run {self.id} has no checkpoint {checkpoint!r}", hint=f"stored: {has}"
            )
        return path

    def weights_digest(self, checkpoint: str = "best") -> str:
        """SHA-256 over names, types, shapes and values of a checkpoint's tensors."""
        from ..core.identity import tensors_digest

        return tensors_digest(self._tensors(checkpoint))

    def _tensors(self, checkpoint: str) -> dict[str, Any]:
        from . import weights

        path = self.weights_path(checkpoint)
        tensors, metadata = weights.load(path)
        if metadata.get("format") != weights.FORMAT:
            raise UserError(f"{path} was not written by rrd train")
        for name, mine in (("run", self.id), ("dataset", self.info.dataset)):
            if metadata.get(name) != mine:
                raise UserError(
                    f"{path} belongs to {name} {metadata.get(name)}, not to {mine}",
                    hint="train it again with --fresh",
                )
        return tensors

    def parts(self, checkpoint: str = "best") -> Parts:
        """Every trained part of a checkpoint, on the CPU, in eval mode."""
        from . import weights
        from .assemble import rebuild

        tensors = self._tensors(checkpoint)
        _, parts = rebuild(self.info)
        weights.fill(parts, tensors, str(self.weights_path(checkpoint)))
        for module in parts.values():
            module.eval()
        return parts

    def deployed(
        self, checkpoint: str = "best", options: Mapping[str, str] | None = None
    ) -> nn.Module:
        """The module that answers users: images (N, C, H, W) in [0, 1] to logits (N, K).

        `options`: deployment options of the defense (for aicr `rule=nearest_centre`).
        """
        from .assemble import defense_of

        module = defense_of(self.info).deployed(self.parts(checkpoint), options or {})
        return module.eval()

    def views(
        self, checkpoint: str = "best", options: Mapping[str, str] | None = None
    ) -> list[View]:
        """The views an attacker would use, the strongest known first."""
        from ..defenses.base import attack_views
        from .assemble import defense_of

        return attack_views(defense_of(self.info), self.parts(checkpoint), options or {})

    def check_dataset(self, dataset: str) -> None:
        """Refuse a data set other than the one the run was trained on."""
        if dataset != self.info.dataset:
            raise UserError(
                f"run {self.id} was trained on {self.info.dataset}, not on {dataset}",
                hint=f"leave --dataset out, or say --dataset {self.info.dataset}",
            )


def runs_folder(results_dir: str | Path) -> Path:
    """Where the runs of a results folder lie."""
    return Path(results_dir) / "runs"


def all_runs(results_dir: str | Path = "results") -> list[Run]:
    """Every readable run of a results folder, unfinished ones first, the newest last."""
    found = []
    for path in runs_folder(results_dir).glob("*/run.json"):
        try:
            found.append(Run(path.parent, read_info(path.parent)))
        except UserError:
            continue
    return sorted(found, key=lambda run: (run.info.finished or "", run.info.started, run.id))


def load_run(
    reference: str | Path, results_dir: str | Path = "results", *, unfinished: bool = False
) -> Run:
    """The run that `reference` means: a run's folder, an id, a unique prefix, or `last`.

    `last` is the newest finished run. Unknown, ambiguous, damaged or (unless `unfinished`)
    unfinished ones are a `UserError`.
    """
    run = _find(str(reference), results_dir)
    if not run.finished and not unfinished:
        total = sum(phase["epochs"] for phase in run.info.phases)
        raise UserError(
            f"run {run.id} is {run.info.status} ({run.info.epochs_done} of {total} epochs)",
            hint=f"its command goes on: {run.info.command}",
        )
    return run


def _find(reference: str, results_dir: str | Path) -> Run:
    folder = Path(reference)
    if (folder / "run.json").is_file():
        return Run(folder, read_info(folder))
    if reference == "last":
        finished = [run for run in all_runs(results_dir) if run.finished]
        if not finished:
            raise UserError(
                f"there is no finished run in {runs_folder(results_dir)}",
                hint="rrd train nt --dataset digits",
            )
        return finished[-1]
    base = runs_folder(results_dir)
    names = sorted(path.parent.name for path in base.glob("*/run.json"))
    matches = [reference] if reference in names else [n for n in names if n.startswith(reference)]
    if not reference or not matches:
        raise UserError(
            f"there is no run {reference!r} in {base}",
            hint=did_you_mean(reference, names, "rrd list runs"),
        )
    if len(matches) > 1:
        shown = ", ".join(matches[:4]) + (", ..." if len(matches) > 4 else "")
        raise UserError(
            f"{reference!r} begins {len(matches)} runs: {shown}", hint="write more of it"
        )
    return Run(base / matches[0], read_info(base / matches[0]))


def parse_subject(text: str) -> tuple[str, str, dict[str, str]]:
    """`RUN@CHECKPOINT[option=value,...]` as (run, checkpoint, options); `best` if unsaid."""
    match = re.fullmatch(r"([^@\[\]]+)(?:@([^\[\]]+))?(?:\[([^\[\]]*)\])?", text.strip())
    if match is None:
        raise UserError(
            f"subject {text!r} cannot be read", hint="RUN, RUN@last or RUN[rule=nearest_centre]"
        )
    run, checkpoint, inside = match.groups()
    options: dict[str, str] = {}
    for item in (inside or "").split(","):
        name, equals, value = item.partition("=")
        if item.strip() and not (equals and name.strip() and value.strip()):
            raise UserError(f"deployment option {item!r} is not NAME=VALUE")
        if item.strip():
            options[name.strip()] = value.strip()
    return run, checkpoint or "best", options


def clear(folder: Path) -> None:
    """Remove what an earlier training left in a run's folder."""
    for path in (folder / "run.json", folder / "log.jsonl"):
        path.unlink(missing_ok=True)
    for name in ("weights", "resume"):
        shutil.rmtree(folder / name, ignore_errors=True)
