"""Our trainer against a plain PyTorch loop: same network, images, batches and threads, in turn.

    python benchmarks/training.py nt pgd_at aicr resnet18 --threads 2 --json FILE
    python benchmarks/training.py pgd_at --epochs 2      # whole epochs: accuracy beside samples/s

`nt`, `pgd_at` (lenet) and `aicr` (cnn6, second stage) on MNIST, `resnet18` (pgd_at; `_narrow`: a
quarter of the width, for whole epochs) on the true pixels of a part of CIFAR-10; images are read
from $RRD_DATA. The plain loop is what one writes without much thought: a `DataLoader` over a data
set that converts each image, a network in float32 in torch's default layout, the attack by
`torch.autograd.grad`, the losses literally, `Adam`.

Three numbers are taken in turn, `--repeats` times: samples per second of ours (those that run.json
holds: everything but validation), of the plain loop, and of the bare passes that the training
cannot do without: on one batch that lies ready, in the precision and layout of ours, the gradients
of the attack's steps and those of the weights, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attacks import machine_facts
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from robustbench_defenses.core.allocator import keep_freed_memory
from robustbench_defenses.core.device import machine
from robustbench_defenses.data.source import describe, load, to_float
from robustbench_defenses.defenses.aicr_losses import (
    attract,
    cross_correlation,
    repulse,
    variance,
)
from robustbench_defenses.training.assemble import make_defense
from robustbench_defenses.training.environment import git_commit, versions
from robustbench_defenses.training.question import ask
from robustbench_defenses.training.train import prepare, train
from robustbench_defenses.training.trainer import own_randomness

LEARNING_RATE = 0.001
AICR_EPS = 0.2


@dataclass(frozen=True)
class Task:
    """A training: `steps` of PGD at `eps` in each of its steps (0: none)."""

    defense: str
    dataset: str
    model: str
    batch: int = 128
    eps: float = 0.0
    steps: int = 0
    settings: tuple[tuple[str, object], ...] = ()


TASKS = {
    "nt": Task("nt", "mnist", "lenet"),
    "pgd_at": Task("pgd_at", "mnist", "lenet", eps=0.3, steps=7),
    "aicr": Task(
        "aicr", "mnist", "cnn6", 256,
        settings=(("pretrain_epochs", 0), ("variance_start", 0.0), ("eps_low", AICR_EPS),
                  ("eps_high", AICR_EPS)),
    ),
    "resnet18": Task("pgd_at", "cifar10_part", "resnet18", eps=8 / 255, steps=7),
    "resnet18_narrow": Task(
        "pgd_at", "cifar10_part", "resnet18", eps=8 / 255, steps=7,
        settings=(("model.width", 16),),
    ),
}  # fmt: skip


def settings_of(task: Task) -> dict[str, object]:
    """Ours, set to what the plain loop does."""
    chosen: dict[str, object] = {
        "batch_size": task.batch, "learning_rate": LEARNING_RATE, "optimiser": "adam",
        "schedule": "constant", "weight_decay": 0.0, "validation": 0, "augment": "none",
        **dict(task.settings),
    }  # fmt: skip
    if task.steps:
        chosen |= {"eps": task.eps, "steps": task.steps, "rel_step": 0.25, "eps_ramp": 0.0}
    return chosen


class Images(Dataset[tuple[Tensor, int]]):
    """Pixels as bytes; an image is converted when it is asked for."""

    def __init__(self, dataset: str, count: int) -> None:
        split = load(dataset, "train")
        self.images, self.labels = split.images[:count], split.labels[:count].tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.images[place].float() / 255, self.labels[place]


def pgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """Madry's attack in float32."""
    points = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(points), labels), points)
        points = points.detach() + 0.25 * eps * gradient.sign()
        points = torch.min(torch.max(points, images - eps), images + eps).clamp(0, 1)
    return points


class Plain:
    """The plain loop; its network begins with the weights of ours."""

    def __init__(self, task: Task, seed: int = 0) -> None:
        self.task = task
        question = ask(
            task.defense, task.dataset, task.model, seed=seed, settings=settings_of(task)
        )
        few = load(task.dataset, "train")
        defense = make_defense(question.defense, question.defense_settings)
        ready = prepare(question, defense, describe(task.dataset), few, machine("cpu", "fp32"))
        self.setup, self.parts = ready.setup, ready.parts
        for part in self.parts.values():
            part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            part.train()
        self.network = self.parts["network"]
        weights = [weight for part in self.parts.values() for weight in part.parameters()]
        self.optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.task.defense == "aicr":
            return self._aicr(images, labels)
        if self.task.steps:
            self.network.eval()
            images = pgd(self.network, images, labels, self.task.eps, self.task.steps)
            self.network.train()
        return F.cross_entropy(self.network(images), labels)

    def _aicr(self, images: Tensor, labels: Tensor) -> Tensor:
        """Equation 12 as in the published code."""
        twins = (images + AICR_EPS * torch.randn_like(images).sign()).clamp(0, 1)
        taps = self.network.tapped(torch.cat([images, twins]))  # type: ignore[operator]
        both, size = torch.cat([labels, labels]), len(images)
        total = F.cross_entropy(taps["logits"], both)
        centres, repulsive = self.parts["centres"], self.parts["repulsive"]
        for name in centres.names:  # type: ignore[union-attr]
            features = taps[name].flatten(1)
            total = total + attract(features, centres.of(name), both, True)  # type: ignore[operator]
            push = repulse(features, repulsive.of(name), both, True)  # type: ignore[operator]
            projected = self.parts["projectors"][name](features)  # type: ignore[index]
            q = cross_correlation(projected[:size], projected[size:])
            total = total - 0.001 * push + 0.0003125 * variance(q, 0.005)
        return total

    def run(self, count: int, epochs: int = 1) -> tuple[float, float]:
        """Train on the first `count` images; samples per wall and per CPU second."""
        data = Images(self.task.dataset, count)
        loader = DataLoader(data, self.task.batch, shuffle=True, drop_last=True)
        begun, cpu, seen = time.perf_counter(), time.process_time(), 0
        for _ in range(epochs):
            for images, labels in loader:
                self.optimiser.zero_grad()
                self.loss(images, labels).backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()
                seen += len(labels)
        return seen / (time.perf_counter() - begun), seen / (time.process_time() - cpu)


class Bare:
    """The passes that the training needs, on one batch."""

    def __init__(self, task: Task, precision: str) -> None:
        self.task = task
        here = machine("cpu", precision)
        question = ask(task.defense, task.dataset, task.model, settings=settings_of(task))
        split = load(task.dataset, "train")
        defense = make_defense(question.defense, question.defense_settings)
        ready = prepare(question, defense, describe(task.dataset), split, here)
        self.network, self.setup = ready.parts["network"], ready.setup
        self.weights = list(self.network.parameters())
        views = 2 if task.defense == "aicr" else 1
        some = torch.arange(task.batch) % len(split.labels)
        images = to_float(split.images[some]).contiguous(memory_format=torch.channels_last)
        self.images, self.labels = images, split.labels[some]
        self.twice = torch.cat([images] * views), torch.cat([self.labels] * views)

    def run(self, batches: int) -> tuple[float, float]:
        """Samples per wall and per CPU second."""
        begun, cpu = time.perf_counter(), time.process_time()
        for _ in range(batches):
            self.network.eval()
            for weight in self.weights:
                weight.requires_grad_(False)
            for _ in range(self.task.steps):
                points = self.images.detach().requires_grad_()
                loss = F.cross_entropy(self.setup.forward(self.network, points), self.labels)
                torch.autograd.grad(loss, points)
            self.network.train()
            for weight in self.weights:
                weight.requires_grad_(True)
            images, labels = self.twice
            loss = F.cross_entropy(self.setup.forward(self.network, images), labels)
            torch.autograd.grad(loss, self.weights)
        seen = batches * self.task.batch
        return seen / (time.perf_counter() - begun), seen / (time.process_time() - cpu)


def ours(task: Task, count: int, epochs: int = 1, **named: Any) -> tuple[float, float, nn.Module]:
    """Our trainer on the first `count` images: samples per wall second (of run.json), per CPU
    second (of the whole call, so a little too few), and the network."""
    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        run = train(
            task.defense, task.dataset, task.model, settings=settings_of(task), epochs=epochs,
            limit_train=count, results_dir=folder, device="cpu", **named,
        )  # fmt: skip
        cpu = time.process_time() - cpu
        rate = run.info.samples_per_second
        network = run.deployed("last")
    return rate, epochs * (count // task.batch) * task.batch / cpu, network


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return (network(images).argmax(1) == labels).double().mean().item()


def accuracies(task: Task, network: nn.Module) -> dict[str, float]:
    """Clean, and under the plain PGD-20, on the first 1,000 test images, in float32."""
    test = load(task.dataset, "test")
    images, labels = to_float(test.images[:1000]), test.labels[:1000]
    network = network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    found = {"clean": _accuracy(network, images, labels)}
    if task.eps:
        found["pgd_20"] = _accuracy(network, pgd(network, images, labels, task.eps, 20), labels)
    return found


def compare(task: Task, count: int, repeats: int, named: dict[str, Any]) -> dict[str, Any]:
    """Ours, the plain loop and the bare passes in turn."""
    plain, bare = Plain(task), Bare(task, named["precision"])
    batches = count // task.batch
    ours(task, 2 * task.batch, **named)
    plain.run(2 * task.batch)
    bare.run(1)
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        mine, mine_cpu, _ = ours(task, count, **named)
        theirs, theirs_cpu = plain.run(count)
        least, _ = bare.run(max(2, batches // 2))
        runs.append({
            "ours": mine, "plain": theirs, "bare": least, "ours_cpu": mine_cpu,
            "plain_cpu": theirs_cpu, "over_plain": mine / theirs, "of_bare": mine / least,
        })  # fmt: skip
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {"images": count, "runs": runs, "median": medians}


def whole(
    task: Task, epochs: int, limit: int | None, seeds: int, named: dict[str, Any]
) -> dict[str, Any]:
    """Both for whole epochs over the first images, once per seed: samples per second and
    accuracies, and their means."""
    count = min(len(load(task.dataset, "train").labels), limit or sys.maxsize)
    runs: list[dict[str, dict[str, float]]] = []
    for seed in range(seeds):
        mine, _, network = ours(task, count, epochs, seed=seed, **named)
        plain = Plain(task, seed)
        with own_randomness(torch.device("cpu")):
            torch.manual_seed(seed)
            theirs, _ = plain.run(count, epochs)
        runs.append({
            "ours": {"rate": mine, **accuracies(task, network)},
            "plain": {"rate": theirs, **accuracies(task, plain.network)},
        })  # fmt: skip
    means = {
        who: {name: statistics.mean(run[who][name] for run in runs) for name in runs[0][who]}
        for who in runs[0]
    }
    return {"images": count, "epochs": epochs, "runs": runs, **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--batches", type=int, default=24, help="of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0, help="whole epochs instead, and accuracy")
    parser.add_argument("--limit", type=int, help="with --epochs: images, all unless given")
    parser.add_argument("--seeds", type=int, default=1, help="with --epochs: runs of each")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kept = keep_freed_memory()  # as `rrd` does, for both loops
    if args.threads:
        torch.set_num_threads(args.threads)
    named = {"precision": args.precision, "threads": args.threads}
    words = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
    document: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/training.py", *words]),
        "threads": torch.get_num_threads(),
        "keeps_freed_memory": kept,
        "machine": machine_facts(),
        "versions": versions(),
        "commit": git_commit(),
        "tasks": {},
    }
    table = Table(title="samples per second (accuracies: ours, and the plain loop's)")
    for name in ("", "ours", "plain loop", "ratio", "of bare passes", "clean", "PGD-20"):
        table.add_column(name, justify="right" if name else "left")
    for name in args.tasks:
        task = TASKS[name]
        if args.epochs:
            found = whole(task, args.epochs, args.limit, args.seeds, named)
            mine, theirs = found["ours"], found["plain"]
            shown = [f"{mine['rate']:.0f}", f"{theirs['rate']:.0f}",
                     f"{mine['rate'] / theirs['rate']:.2f}", ""]  # fmt: skip
            for key in ("clean", "pgd_20"):
                if key in mine:
                    shown.append(f"{100 * mine[key]:.1f} ({100 * theirs[key]:.1f})")
        else:
            found = compare(task, args.batches * task.batch, args.repeats, named)
            middle = found["median"]
            shown = [f"{middle['ours']:.0f}", f"{middle['plain']:.0f}",
                     f"{middle['over_plain']:.2f}", f"{100 * middle['of_bare']:.0f} %"]  # fmt: skip
        table.add_row(name, *shown)
        document["tasks"][name] = found
        if args.json:
            args.json.write_text(json.dumps(document, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
