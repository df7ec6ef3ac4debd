"""Our attacks against peers: same network, images, budgets and threads, paired in one process.

    RRD_DATA=DIR python benchmarks/attacks.py benchmarks/plain.py:natural -n 500 --repeats 3
    RRD_DATA=DIR python benchmarks/attacks.py benchmarks/plain.py:adversarial --json out.json

Tasks: `pgd` (PGD-40, step 0.01, eps 0.3), `sweep` (the eight-point grid), `transfer` (images of
PGD-40 at 0.2 and 0.3 shown to `--second`). Prints CPU and wall seconds of each repeat, their
ratio, passes per image, and robust accuracy judged by this script in float32. The peer is asked in
batches of `--peer-batch`, where it is fastest. For ours, `over bare` is the CPU time divided by the
passes made times the cost of a bare pass of the search twin at batch 256.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_defenses.attacks.pgd import PGD
from robustbench_defenses.core import plugins
from robustbench_defenses.core.device import machine
from robustbench_defenses.core.norms import distance, largest_allowed
from robustbench_defenses.core.view import View
from robustbench_defenses.data import source
from robustbench_defenses.engine.craft import craft
from robustbench_defenses.engine.search import Block, Search
from robustbench_defenses.engine.twin import Twin, search_twin

GRID = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5)  # and 0, which costs one clean pass
STEP, STEPS = 0.01, 40


def subject(reference: str) -> nn.Module:
    """The network behind FILE.py:FACTORY."""
    parsed = plugins.parse_reference(reference)
    if parsed is None:
        raise SystemExit(f"{reference} is not FILE.py:FACTORY")
    model: nn.Module = plugins.load_object(parsed)()
    return model.eval()


def timed(task: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds and wall seconds of a task."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = task()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def foolbox_sweep(
    model: nn.Module, x: Tensor, y: Tensor, grid: tuple[float, ...], batch: int
) -> list[float]:
    """Robust accuracy at `grid` by foolbox's LinfPGD, the images judged again in float32."""
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, rel_stepsize=None, steps=STEPS)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    standing = torch.zeros(len(grid))
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        _, images, _ = attack(wrapped, x[part], y[part], epsilons=list(grid))
        for i, adversarial in enumerate(images):
            with torch.no_grad():
                right = model(adversarial).argmax(1) == y[part]
            inside = distance(adversarial, x[part], "linf") <= largest_allowed(
                torch.tensor(grid[i])
            )
            standing[i] += (right | ~inside).sum()
    for weight in model.parameters():
        weight.grad = None
    return [float(v) / len(x) for v in standing]


def our_sweep(
    model: nn.Module, twin: Twin, x: Tensor, y: Tensor, grid: tuple[float, ...]
) -> tuple[list[float], int, int]:
    """Robust accuracy at `grid`, forward and backward passes, by our engine."""
    block = Block(x, y, torch.full_like(y, -1), torch.arange(len(y)), grid)
    out = Search(PGD(step_size=STEP, steps=STEPS), twin, model, block, attack_name="pgd_linf").run()
    left = [
        float((out.distance > largest_allowed(torch.tensor(eps))).double().mean()) for eps in grid
    ]
    return left, out.cost.forward, out.cost.backward


def bare_pass(twin: Twin, x: Tensor, y: Tensor) -> float:
    """CPU seconds per image of one forward and input gradient of the search twin at batch 256."""
    images = x[:256].repeat(256 // min(256, len(x)) + 1, 1, 1, 1)[:256]
    labels = y[:256].repeat(256 // min(256, len(y)) + 1)[:256]

    def once() -> None:
        points = images.clone().requires_grad_()
        torch.autograd.grad(F.cross_entropy(twin(points), labels, reduction="sum"), points)

    once()
    return min(timed(once)[1] for _ in range(8)) / 256


def compare(name: str, model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Any:
    """One task, `--repeats` times, ours and the peer's in turn."""
    grid = (0.3,) if name == "pgd" else GRID
    twin = search_twin(View("benchmark", model), x, args.precision)
    our_sweep(model, twin, x[:64], y[:64], grid[:1])  # warm-up: compilation of kernels
    foolbox_sweep(model, x[:64], y[:64], grid[:1], 64)
    rows = []
    for _ in range(args.repeats):
        (left, forward, backward), cpu, wall = timed(lambda: our_sweep(model, twin, x, y, grid))
        bare = bare_pass(twin, x, y)
        peer, peer_cpu, peer_wall = timed(lambda: foolbox_sweep(model, x, y, grid, args.peer_batch))
        rows.append(
            {
                "ours_cpu": cpu,
                "ours_wall": wall,
                "foolbox_cpu": peer_cpu,
                "foolbox_wall": peer_wall,
                "ratio_cpu": peer_cpu / cpu,
                "ratio_wall": peer_wall / wall,
                "over_bare": cpu / (backward * bare),
                "forward_per_image": forward / len(x),
                "backward_per_image": backward / len(x),
                "ours": left,
                "foolbox": peer,
            }
        )
        print(
            f"{name:8} ours {wall:6.2f} s, foolbox {peer_wall:7.2f} s, "
            f"ratio {peer_wall / wall:5.2f} (cpu {peer_cpu / cpu:5.2f}), "
            f"over bare {rows[-1]['over_bare']:.2f}, "
            f"{forward / len(x):.0f} F + {backward / len(x):.0f} B per image",
            flush=True,
        )
    print("  eps      " + " ".join(f"{eps:6.2f}" for eps in grid))
    print("  ours     " + " ".join(f"{100 * value:6.1f}" for value in rows[-1]["ours"]))
    print("  foolbox  " + " ".join(f"{100 * value:6.1f}" for value in rows[-1]["foolbox"]))
    median = statistics.median(row["ratio_wall"] for row in rows)
    print(f"  median ratio {median:.2f}")
    return {"task": name, "grid": grid, "repeats": rows, "median_ratio": median}


def transfer(model: nn.Module, x: Tensor, y: Tensor, args: argparse.Namespace) -> Any:
    """Accuracy of a second network on images made from the first, ours beside foolbox's.

    Both begin at the images: with random starts one seed moves the accuracy by more than a point.
    """
    target = subject(args.second)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=STEP, rel_stepsize=None, steps=STEPS, random_start=False
    )
    mine_attack = PGD(step_size=STEP, steps=STEPS, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    rows = []
    for eps in (0.2, 0.3):
        left = {"eps": eps, "ours": 0.0, "foolbox": 0.0}
        for start in range(0, len(x), 250):
            part = slice(start, start + 250)
            mine = craft(model, mine_attack, x[part], y[part], eps)
            _, theirs, _ = attack(wrapped, x[part], y[part], epsilons=eps)
            with torch.no_grad():
                for key, images in (("ours", mine), ("foolbox", theirs)):
                    left[key] += float((target(images).argmax(1) == y[part]).sum()) / len(x)
        rows.append(left)
        print(
            f"transfer eps {eps}: accuracy of {args.second} on ours {100 * left['ours']:.1f} %, "
            f"on foolbox's {100 * left['foolbox']:.1f} %"
        )
    return {"task": "transfer", "second": args.second, "rows": rows}


def main() -> None:
    """Parse, run the tasks, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("subject", help="FILE.py:FACTORY")
    parser.add_argument("--second", default="benchmarks/plain.py:second")
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--tasks", default="pgd,sweep")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-batch", type=int, default=250)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    here = machine("cpu", args.precision, args.threads)
    args.precision = here.precision
    model = subject(args.subject)
    split = source.load(args.dataset, "test")
    x, y = source.to_float(split.images[: args.n]), split.labels[: args.n]
    print(f"{args.subject}, {args.n} images, {here.threads} threads, {here.precision} search")
    tasks = args.tasks.split(",")
    found = [
        transfer(model, x, y, args) if task == "transfer" else compare(task, model, x, y, args)
        for task in tasks
    ]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "subject": args.subject,
            "n": args.n,
            "threads": here.threads,
            "precision": here.precision,
            "torch": torch.__version__,
            "foolbox": foolbox.__version__,
            "tasks": found,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
