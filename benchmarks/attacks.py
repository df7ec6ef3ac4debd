"""Our attacks against peers: same network, images, budgets and threads, in turn in one process.

    python benchmarks/attacks.py pgd sweep --network adversarial -n 500 --threads 1 --json FILE
    python benchmarks/attacks.py strength --network cifar --eps 0.0025,0.005,2/255
    python benchmarks/attacks.py scaling --network natural -n 1000

Tasks are those of `tasks.py`, and `strength` (every task beside its reference alone), `cw_ddn` and
`scaling` (of ours alone) and `transfer` (images shown to `--second`). Networks: those of
`plain.py`, or FILE.py:FACTORY. Images are read from $RRD_DATA. Peers that are not installed are
left out (`requirements.txt`).

Of each run: wall and CPU seconds (on a shared machine trust the ratio of CPU seconds), passes per
image, and accuracy or norms by a float32 verdict of this script's own. For ours, `over bare`: CPU
seconds over those of the passes alone, each measured in the same minute at a full batch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import memory
import peers
import torch
from comparison import Contest, Question, compare, question
from peers import Peer, ours
from rich.console import Console
from rich.table import Table
from studies import carlini_wagner, scaling, strength, transfer
from subjects import Subject, subject
from tasks import TASKS

from robustbench_defenses.core.allocator import keep_freed_memory
from robustbench_defenses.core.device import machine
from robustbench_defenses.core.norms import parse_eps
from robustbench_defenses.training.environment import git_commit, versions

STUDIES = ("strength", "cw_ddn", "scaling", "transfer")


def main() -> None:
    """Parse, run, print, write JSON."""
    warnings.simplefilter("ignore", DeprecationWarning)
    args = _arguments()
    kept = keep_freed_memory()  # as `rrd` does; the peers have it, too
    here = machine("cpu", args.precision, args.threads)
    most = args.n if args.slow_n is None else max(args.n, args.slow_n)
    attacked = subject(
        args.network, args.dataset, most, here.precision, args.predicted_labels, args.freeze
    )
    chosen = [] if args.peers == "none" else args.peers.split(",")
    found = [peers.load(name) for name in chosen]
    present = [peer for peer in found if peer is not None]
    absent = [name for name, peer in zip(chosen, found) if peer is None]
    if args.child:
        asked = _questions(args, attacked, present)[args.child_question]
        mine = {peer.name: peer for peer in present}
        memory.child(asked, mine.get(args.child))
        return
    console = Console(width=140 if not sys.stdout.isatty() else None)
    console.print(
        f"{args.network} on {attacked.dataset}, {len(attacked.labels)} images, {here.threads} "
        f"threads, {here.precision} search" + (f"; not installed: {absent}" if absent else "")
    )
    document: dict[str, Any] = {
        "schema": "rrd.benchmark/1",
        "command": _command(args),
        "network": args.network,
        "dataset": attacked.dataset,
        "clean_accuracy": float(
            (attacked.predictions(attacked.images) == attacked.labels).double().mean()
        ),
        "threads": here.threads,
        "keeps_freed_memory": kept,
        "precision": here.precision,
        "machine": machine_facts(),
        "versions": {**versions(), **{peer.name: peer.version for peer in present}},
        "commit": git_commit(),
        "tasks": [],
    }
    for place, asked in enumerate(_questions(args, attacked, present)):
        contest: Contest = "strength" if "strength" in args.tasks else "speed"
        result = compare(asked, present, args.repeats, contest)
        if args.memory:
            result["memory"] = _memory(place, result)
        document["tasks"].append(result)
        _print(console, result)
        _write(args.json, document)
    if "cw_ddn" in args.tasks:
        document["cw_ddn"] = carlini_wagner(attacked.first(args.n), args.peer_batch)
        _print_rows(console, "C&W beside DDN-1000", document["cw_ddn"])
    if "scaling" in args.tasks:
        document["scaling"] = scaling(attacked, args.peer_batch)
        _print_rows(console, "scaling of ours (PGD sweep)", document["scaling"])
    if "transfer" in args.tasks:
        document["transfer"] = transfer(attacked, args.second, args.peer_batch)
        _print_rows(console, "transfer", document["transfer"])
    _write(args.json, document)
    for said in _weaker(document["tasks"]):
        console.print(said, markup=False)


def _weaker(tasks: list[dict[str, Any]]) -> list[str]:
    """A line for every comparison in which ours is the weaker attack, in the mean of all runs."""
    return [
        f"weaker than {name} in {task['task']}{_budgets(task)}, last run: "
        f"{_outcome(task['ours']['runs'][-1])} beside {_outcome(peer['runs'][-1])}"
        for task in tasks
        for name, peer in task["peers"].items()
        if peer["weaker"]
    ]


def _budgets(task: dict[str, Any]) -> str:
    return "" if not task["grid"] else " at " + " ".join(f"{eps:.4g}" for eps in task["grid"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=[*TASKS, *STUDIES], metavar="TASK")
    parser.add_argument("--network", default="natural", help="of plain.py, or FILE.py:FACTORY")
    parser.add_argument("--dataset", help="for FILE.py:FACTORY: a registered data set")
    parser.add_argument("--eps", help="budgets of tasks in Linf, comma list: 0.3 or 8/255")
    parser.add_argument("-n", type=int, default=None, help="images (500; strength: 1000)")
    parser.add_argument("--slow-n", type=int, default=None, help="strength: of slow tasks (200)")
    parser.add_argument("--only", help="strength: a comma list of its tasks")
    parser.add_argument("--repeats", type=int, default=None, help="pairs (3; strength: 1)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--peers", default=",".join(peers.NAMES), help="comma list, or none")
    parser.add_argument("--peer-batch", type=int, default=250)
    parser.add_argument("--predicted-labels", action="store_true", help="attack every image")
    parser.add_argument("--freeze", action="store_true", help="weights ask for no gradients")
    parser.add_argument("--memory", action="store_true", help="peak memory, in child processes")
    parser.add_argument("--second", default="second", help="transfer: the network that is shown")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--child-question", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    strong = "strength" in args.tasks
    args.n = (1000 if strong or "scaling" in args.tasks else 500) if args.n is None else args.n
    args.slow_n = min(args.n, 200) if args.slow_n is None else args.slow_n
    args.repeats = (1 if strong else 3) if args.repeats is None else args.repeats
    return args


def _questions(args: argparse.Namespace, attacked: Subject, present: list[Peer]) -> list[Question]:
    """What is asked, in order; tasks that we have no attack for are told and left out."""
    texts = args.eps.split(",") if args.eps else []
    eps: list[float | None] = [parse_eps(text) for text in texts] or [None]
    asked: list[Question] = []
    if "strength" in args.tasks:
        names = args.only.split(",") if args.only else None
        asked += strength(attacked, eps, present, args.n, args.slow_n, args.peer_batch, names)
    for name in args.tasks:
        if name in STUDIES:
            continue
        task = TASKS[name]
        if ours.missing(task.ours):
            print(f"{name}: there is no {task.ours} of ours", file=sys.stderr)
            continue
        own = not (task.minimum or task.sweep) and task.norm == "linf"
        for one in eps if own else [None]:
            asked.append(question(name, task, attacked.first(args.n), one, args.peer_batch))
    return asked


def _memory(place: int, result: dict[str, Any]) -> dict[str, Any]:
    """Peak memory of ours and of every peer of a finished task."""
    arguments = [*sys.argv, "--child-question", str(place)]
    return memory.peaks(arguments, ["ours", *result["peers"]])


def _command(args: argparse.Namespace) -> str:
    """The command as one would type it, without the place of its answer."""
    words = [word for word in sys.argv[1:] if word not in ("--json", str(args.json))]
    return shlex.join(["python", "benchmarks/attacks.py", *words])


def machine_facts() -> dict[str, Any]:
    """What the seconds depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        model = platform.processor()
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "load_at_start": load,
    }


def _print(console: Console, result: dict[str, Any]) -> None:
    """One task as a table: a row per peer."""
    mine = result["ours"]["runs"][-1]
    bare = result["ours"].get("median_over_bare")
    peak = result.get("memory", {})
    table = Table(title=f"{result['task']} ({result['norm']}{_budgets(result)}), n = {result['n']}")
    for name in ("", "result", "ours beside"):
        table.add_column(name)
    for name in ("wall s", "CPU s", "wall ratio", "CPU ratio", "over bare", "F", "B", "MiB"):
        table.add_column(name, justify="right")
    table.add_row(
        "ours", _outcome(mine), "",
        f"{result['ours']['median_wall']:.2f}", f"{result['ours']['median_cpu']:.2f}", "", "",
        "" if bare is None else f"{bare:.2f}", *_cost(mine, peak.get("ours")),
    )  # fmt: skip
    for name, peer in result["peers"].items():
        last = peer["runs"][-1]
        table.add_row(
            name, _outcome(last), _beside(last, peer["weaker"]),
            f"{peer['median_wall']:.2f}", f"{peer['median_cpu']:.2f}",
            f"{peer['median_ratio_wall']:.2f}", f"{peer['median_ratio_cpu']:.2f}",
            "", *_cost(last, peak.get(name)),
        )  # fmt: skip
    console.print(table)
    for name, said in result["failed"].items():
        console.print(f"  {name} failed: {said}", markup=False)
    lost = sum(sum(run.get("unconfirmed", [])) for run in result["ours"]["runs"])
    if lost:
        console.print(f"  {lost} of our claims are not confirmed by a second float32 pass")


def _cost(run: dict[str, Any], peak: dict[str, Any] | None) -> list[str]:
    """Passes per image and memory above the start, as cells."""
    size = "" if not peak or "failed" in peak else f"{peak['peak_mib'] - peak['before_mib']:.0f}"
    return [f"{run['forward_per_image']:.1f}", f"{run['backward_per_image']:.1f}", size]


def _outcome(run: dict[str, Any]) -> str:
    """Robust accuracy in percent, or success and mean norm."""
    if "robust_accuracy" in run:
        return " ".join(f"{100 * value:.1f}" for value in run["robust_accuracy"]) + " %"
    norm = run["mean_norm"]
    return f"{100 * run['success']:.1f} %, mean {'-' if norm is None else f'{norm:.4g}'}"


def _beside(run: dict[str, Any], weaker: bool) -> str:
    """Our outcome beside the peer's in one run, with a mark where ours is weaker in all."""
    if "only_ours_breaks" in run:
        said = " ".join(
            f"+{mine}/-{theirs}"
            for mine, theirs in zip(run["only_ours_breaks"], run["only_peer_breaks"])
        )
    else:
        ratio = run["norm_ratio"]
        said = "" if ratio is None else f"norm x {ratio:.4f}"
    return said + ("  [bold]WEAKER[/]" if weaker else "")


def _print_rows(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def _write(path: Path | None, document: dict[str, Any]) -> None:
    """Write what there is: a long comparison that is stopped keeps its finished tasks."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
