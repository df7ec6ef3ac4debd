"""The training loop: epochs, precision, validation, checkpoints, log, resume.

Killed at any moment, `Trainer.run` goes on from the last saved standing and ends with the weights
of an uninterrupted run, bit for bit on the CPU: the order of images, augmentation, noise and
torch's own generators are functions of seed, phase, epoch, step and image, and the saved standing
holds weights, optimisers and counters.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from ..core import rng
from ..core.device import Machine
from ..core.errors import Interrupted, UserError
from ..core.progress import Progress
from ..core.stopping import StopRequest
from ..data.loader import Loader
from ..defenses.base import Batch, Defense, Parts, Phase, Setup, Terms
from . import log, resume, weights
from .resume import Standing
from .runs import Run, RunInfo
from .validation import overfitting, validate

# A standing is saved at the end of each epoch and this often inside one.
SAVE_SECONDS = 20.0
# Steps between two looks at the loss on an accelerator, where each look waits for the device.
LOOK_EVERY = 50
# The loss at this step of a phase is logged: at chance (log K), the start destroyed the network.
EARLY_STEP = 20


class DivergedError(UserError):
    """A loss is not finite any more."""


@dataclass
class Trainer:
    """One training. `held_out`: images (N, C, H, W) float32 and labels (N,), or None."""

    folder: Path
    info: RunInfo
    defense: Defense
    setup: Setup
    parts: Parts
    loader: Loader
    held_out: tuple[Tensor, Tensor] | None
    machine: Machine
    progress: Progress
    standing: Standing
    restored: dict[str, Tensor] | None = None

    def run(self) -> RunInfo:
        """Train from the standing to the end; returns the finished run.json.

        `Interrupted` after Ctrl-C, `DivergedError` when a loss is not finite any more.
        """
        self._started = self._saved = time.monotonic()
        self._seconds_before = self.standing.seconds
        self._note = ""
        self._trained = {
            weight
            for module in self.parts.values()
            for weight in module.parameters()
            if weight.requires_grad
        }
        if self.restored is not None:
            # The defense may look at its parts between two phases: it must see trained ones.
            resume.fill_parts(self.parts, self.restored, resume.path_of(self.folder))
        log.cut(self.folder, self.standing.log_lines)
        with StopRequest() as self._stop, own_randomness(self.machine.device):
            for number, phase in enumerate(self.defense.phases(self.setup, self.parts)):
                if number >= self.standing.phase:
                    self._run_phase(phase)
            info = self._finish()
        if self._stop.asked:
            raise Interrupted(f"{info.id} was finished; the same command shows it")
        return info

    def _run_phase(self, phase: Phase) -> None:
        standing, tensors = self.standing, self.restored
        if tensors is not None:
            resume.fill_parts(self.parts, tensors, resume.path_of(self.folder))
            if standing.begun:
                resume.fill_optimisers(phase.optimisers, tensors)
            self.restored = None
        self._phase = phase
        if standing.phase == len(standing.phases):
            standing.phases.append({"name": phase.name, "epochs": phase.epochs})
        self._write_info("unfinished")
        label = "train" if phase.name in ("train", self.info.defense) else phase.name
        total = phase.epochs * self.loader.steps
        self.progress.start(f"{label} {self.info.defense}", total)
        if not standing.begun and phase.begin is not None:
            phase.begin()
        standing.begun = True
        while standing.epoch < phase.epochs:
            self._run_epoch(phase)
            self._end_epoch(phase)
        self.progress.finish(f"{phase.epochs} epochs{self._note}")
        standing.phase, standing.epoch, standing.begun = standing.phase + 1, 0, False
        self._save(())

    def _run_epoch(self, phase: Phase) -> None:
        standing = self.standing
        for name, module in self.parts.items():
            trains = phase.trains is None or name in phase.trains
            module.train(trains)
            for weight in module.parameters():
                weight.requires_grad_(trains and weight in self._trained)
        begun = time.monotonic()
        seconds_before = standing.training_seconds
        for images, labels, index in self.loader.epoch(standing.epochs, standing.step):
            batch = self._batch(phase, images, labels, index)
            terms = step(phase, batch, self.machine.device)
            self._count(terms, len(labels))
            standing.training_seconds = seconds_before + time.monotonic() - begun
            every = self.setup.settings.save_every
            if every and standing.steps % every == 0:
                self._checkpoint(f"step-{standing.steps}")
            if batch.step + 1 == EARLY_STEP:
                line = {"event": "early", "phase": phase.name, "step": standing.steps}
                self._log({**line, **{k: v.item() for k, v in terms.items()}})
            done = batch.step + 1
            self.progress.update(done, f"epoch {batch.epoch + 1} of {phase.epochs}{self._note}")
            if self._stop.asked:
                self._interrupt(phase)
            elif (
                standing.step < self.loader.steps and time.monotonic() - self._saved >= SAVE_SECONDS
            ):
                self._save(phase.optimisers)

    def _batch(self, phase: Phase, images: Tensor, labels: Tensor, index: Tensor) -> Batch:
        standing = self.standing
        where = (standing.epoch, standing.step, self.loader.steps)
        return batch_of(phase, images, labels, index, self.setup.seed, *where)

    def _count(self, terms: Terms, images: int) -> None:
        """Add the terms to the epoch's sums, on the device; look at them now and then."""
        standing = self.standing
        if standing.step == 0 or not hasattr(self, "_sums"):
            kept = standing.sums if standing.step else {}
            double = torch.float32 if self.machine.device.type == "mps" else torch.float64
            start = [kept.get(name, 0.0) for name in terms]
            self._sums = torch.tensor(start, dtype=double, device=self.machine.device)
            self._names = list(terms)
        self._sums += torch.stack([terms[name].to(self._sums.dtype) for name in self._names])
        standing.step += 1
        standing.steps += 1
        standing.samples += images
        on_cpu = self.machine.device.type == "cpu"
        if on_cpu or standing.step % LOOK_EVERY == 0 or standing.step == self.loader.steps:
            self._look()

    def _look(self) -> None:
        """Stop with a clear message when a loss is not finite."""
        standing = self.standing
        standing.sums = dict(zip(self._names, self._sums.tolist()))
        bad = [
            name for name, finite in zip(self._names, self._sums.isfinite().tolist()) if not finite
        ]
        if not bad:
            return
        where = f"phase {self._phase.name}, epoch {standing.epoch + 1}, step {standing.step}"
        self._log({"event": "diverged", "phase": self._phase.name, "step": standing.steps,
                   "terms": bad})  # fmt: skip
        sentence = f"training diverged ({where}): {', '.join(bad)} is not finite"
        standing.warnings.append(
            {"check": "diverged", "epoch": standing.epochs, "sentence": sentence}
        )
        self._write_info("diverged")
        resume.forget(self.folder)
        raise DivergedError(
            f"{self.info.id}: {sentence}", hint="a smaller rate may help: --set learning_rate=..."
        )

    def _end_epoch(self, phase: Phase) -> None:
        standing = self.standing
        means = {name: total / standing.step for name, total in standing.sums.items()}
        standing.epoch, standing.epochs = standing.epoch + 1, standing.epochs + 1
        standing.step, standing.sums = 0, {}
        rate = phase.optimisers[0].stepper.param_groups[0]["lr"] if phase.optimisers else None
        line = {"event": "epoch", "phase": phase.name, "epoch": standing.epochs,
                "step": standing.steps, "learning_rate": rate, **means}  # fmt: skip
        self._log({**line, **self._validate(phase), "seconds": self._clock()})
        self._write_info("unfinished")
        self._save(phase.optimisers)

    def _validate(self, phase: Phase) -> dict[str, float]:
        """Judge the deployed module on the held-out images; keep it if it is the best so far."""
        if self.held_out is None:
            return {}
        standing = self.standing
        for module in self.parts.values():
            module.eval()
        deployed = self.defense.deployed(self.parts, {}).eval()
        found = validate(deployed, *self.held_out, phase.robust, self.machine.autocast)
        numbers = {"validation_accuracy": found.clean}
        if found.robust is not None:
            numbers["robust_validation_accuracy"] = found.robust
        if found.one_step is not None:
            numbers["one_step_validation_accuracy"] = found.one_step
        if phase.monitor is not None:
            numbers.update(phase.monitor(*self.held_out))
        last = standing.epoch == phase.epochs
        if found.robust is not None and standing.epoch > phase.ramped * phase.epochs:
            sentence = overfitting(found, standing.best_robust, last)
            if sentence:
                standing.warnings.append(
                    {
                        "check": "catastrophic_overfitting",
                        "epoch": standing.epochs,
                        "sentence": sentence,
                    }
                )
            standing.best_robust = max(standing.best_robust, found.robust)
        metric, value = found.score()
        standing.final = {"epoch": standing.epochs, "metric": metric, "value": value,
                          "validation_accuracy": found.clean}  # fmt: skip
        if phase.selects and (standing.best is None or value >= standing.best["value"]):
            standing.best = standing.final
            self._checkpoint("best")
        self._note = f" · clean {100 * found.clean:.1f} %" + (
            "" if found.robust is None else f" · robust {100 * found.robust:.1f} %"
        )
        return numbers

    def _interrupt(self, phase: Phase) -> None:
        standing = self.standing
        self._save(phase.optimisers)
        self._write_info("unfinished")
        self.progress.finish("interrupted")
        raise Interrupted(
            f"{self.info.id}: interrupted in {phase.name}, epoch {standing.epoch + 1} of "
            f"{phase.epochs}; the same command goes on"
        )

    def _finish(self) -> RunInfo:
        self._checkpoint("last")
        if self.standing.best is None:
            self._checkpoint("best")
        for weight in self._trained:
            weight.requires_grad_(True)
            weight.grad = None
        run = Run(self.folder, self.info)
        digests = {name: run.weights_digest(name) for name in run.checkpoints()}
        self.info = dataclasses.replace(self.info, weights=digests, finished=_now())
        self._write_info("finished")
        resume.forget(self.folder)
        return self.info

    def _checkpoint(self, name: str) -> None:
        about = {"run": self.info.id, "dataset": self.info.dataset, "checkpoint": name,
                 "epoch": str(self.standing.epochs), "step": str(self.standing.steps)}  # fmt: skip
        weights.save(self.folder / "weights" / f"{name}.safetensors", self.parts, about)

    def _save(self, optimisers: tuple[object, ...]) -> None:
        self.standing.seconds = self._clock()
        if self.standing.step:
            self.standing.sums = dict(zip(self._names, self._sums.tolist()))
        resume.save(self.folder, self.standing, self.parts, optimisers)  # type: ignore[arg-type]
        self._saved = time.monotonic()

    def _clock(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _log(self, line: dict[str, object]) -> None:
        log.append(self.folder, line)
        self.standing.log_lines += 1

    def _warn(self, check: str, sentence: str) -> None:
        warning = {"check": check, "epoch": self.standing.epochs, "sentence": sentence}
        self.standing.warnings.append(warning)

    def _write_info(self, status: str) -> None:
        standing = self.standing
        speed = standing.samples / standing.training_seconds if standing.training_seconds else 0.0
        self.info = dataclasses.replace(
            self.info,
            status=status,
            phases=standing.phases,
            epochs_done=standing.epochs,
            best=standing.best,
            final=standing.final,
            seconds=round(self._clock(), 3),
            samples_per_second=round(speed, 1),
            warnings=standing.warnings,
        )
        self.info.write(self.folder)


def batch_of(
    phase: Phase, images: Tensor, labels: Tensor, index: Tensor,
    seed: int, epoch: int, step: int, steps: int,
) -> Batch:  # fmt: skip
    """The batch of one step: number `step` of the `steps` of epoch `epoch`, both from 0."""
    done = epoch * steps + step
    return Batch(
        images=images,
        labels=labels,
        index=index,
        key=rng.row_keys(seed, f"{phase.name}|{epoch}", index),
        phase=phase.name,
        epoch=epoch,
        step=done,
        progress=done / (phase.epochs * steps),
        seed=seed,
    )


def step(phase: Phase, batch: Batch, device: torch.device) -> Terms:
    """One step of a phase: its optimisers move; returns the detached terms of the loss."""
    # For networks with random layers of their own (dropout, noise).
    _seed_torch(rng.name_key(batch.seed, phase.name, batch.step), device)
    for optimiser in phase.optimisers:
        optimiser.set_rate(batch.progress)
    if phase.update is not None:
        return {name: term.detach() for name, term in phase.update(batch).items()}
    assert phase.loss is not None
    terms = phase.loss(batch)
    total = torch.stack(list(terms.values())).sum()
    for optimiser in phase.optimisers:
        optimiser.stepper.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    for optimiser in phase.optimisers:
        optimiser.stepper.step()
    return {name: term.detach() for name, term in terms.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _seed_torch(key: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(key)


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Torch's global generators are free to use inside and as before afterwards."""
    cpu = torch.default_generator.get_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
