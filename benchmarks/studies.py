"""What is no contest of speed: strength of every attack, C&W beside a long DDN, how the cost grows,
transfer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comparison import Question, judge, question, run_ours, summary
from peers import Peer, ours
from subjects import Subject, network
from tasks import GRID, MNIST_STEP, TASKS, Task

from robustbench_defenses.attacks.pgd import PGD
from robustbench_defenses.engine.craft import craft

NEAREST_N = 300  # images of a minimum-norm attack in a comparison of strength
SIZES = (250, 500, 1000)
POINTS = (16, 32)


def strength(
    subject: Subject, eps: list[float | None], peers: list[Peer], n: int, slow_n: int, batch: int,
    names: list[str] | None = None,
) -> list[Question]:  # fmt: skip
    """The questions of a comparison of strength: every task, budgets in Linf as given."""
    asked = []
    for name in names or TASKS:
        task = TASKS[name]
        if task.sweep or task.peer_steps or ours.missing(task.ours):
            continue
        if not any((task.method or name) in peer.attacks for peer in peers):
            continue
        few = subject.first(slow_n if task.slow else min(n, NEAREST_N) if task.minimum else n)
        own = not task.minimum and task.norm == "linf"
        asked += [question(name, task, few, one, batch) for one in (eps if own else [None])]
    return asked


def carlini_wagner(subject: Subject, batch: int) -> list[dict[str, Any]]:
    """C&W at its defaults but 9 rounds of 100 steps, beside DDN with 1,000 steps."""
    tasks = {
        "ddn 1000": replace(TASKS["ddn"], steps=1000),
        "cw 9x100": Task("cw", "l2", 100, settings={"search_steps": 9}, minimum=True),
    }
    found: list[dict[str, Any]] = []
    for name, task in tasks.items():
        asked = question(name, task, subject, None, batch)
        made = run_ours(asked, 0)
        verdict = judge(asked, made)
        facts = summary(asked, made, verdict)
        row = {"attack": name, "n": asked.count}
        row |= {key: facts[key] for key in ("success", "mean_norm", "median_norm", "cpu")}
        for key in ("mean_norm", "median_norm"):
            row[f"{key}_ratio"] = row[key] / (found[0] if found else row)[key]
        found.append(row)
    return found


def scaling(subject: Subject, batch: int) -> list[dict[str, Any]]:
    """Seconds and passes of ours by the number of images, and by the number of budgets.

    The longer grids add budgets above those of the sweep, where next to nothing stands.
    """
    task, found = TASKS["sweep"], []
    base = GRID[subject.dataset]
    asked = question("scaling", task, subject, None, batch)
    sizes = [size for size in SIZES if size <= asked.count] or [asked.count]
    plans = [(size, base) for size in sizes]
    for points in POINTS:
        extra = points - 1 - len(base)  # budget 0 is one of the points
        top = [base[-1] + (1 - base[-1]) * (i + 1) / extra for i in range(extra)]
        plans.append((sizes[-1], (*base, *top)))
    for size, grid in plans:
        one = replace(asked, subject=subject.first(size), grid=grid)
        run_ours(replace(one, subject=subject.first(64)), 0)
        made = run_ours(one, 0)
        standing = (~judge(one, made).broken).double().mean(1)
        found.append({
            "n": size,
            "points": len(grid) + 1,
            "cpu": made.cpu,
            "wall": made.wall,
            "cpu_per_image": made.cpu / size,
            "forward_per_image": made.forward / size,
            "backward_per_image": made.backward / size,
            "standing_at_end": float(standing[-1]),
        })  # fmt: skip
    return found


def transfer(subject: Subject, second: str, batch: int) -> list[dict[str, Any]]:
    """Accuracy of the network `second` on images of PGD made from the first, ours and foolbox's.

    Both begin at the images: with random starts one seed moves the accuracy by more than a point.
    """
    import foolbox

    target, shown = network(second), len(subject.labels)
    mine = PGD(step_size=MNIST_STEP, steps=40, random_start=False)
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=MNIST_STEP, steps=40, random_start=False)
    wrapped = foolbox.PyTorchModel(subject.model, bounds=(0, 1))
    rows = []
    for eps in (0.2, 0.3):
        right = {"ours": 0, "foolbox": 0}
        for x, y in zip(subject.images.split(batch), subject.labels.split(batch)):
            made = craft(subject.model, mine, x, y, eps), theirs(wrapped, x, y, epsilons=eps)[1]
            with torch.no_grad():
                for name, images in zip(right, made):
                    right[name] += int((target(images).argmax(1) == y).sum())
        shares = {name: count / shown for name, count in right.items()}
        rows.append({"eps": eps, "second": second, **shares})
    return rows
