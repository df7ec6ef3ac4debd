"""Peak memory of a library: a child process each, so that none inherits another's."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from comparison import Question, run_ours, run_peer
from peers import Peer

MIB = 1 << 20
RUNS = 5


def _status(field: str) -> int | None:
    """A size in bytes from the process's own status (Linux), None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def _reset_peak() -> None:
    """Forget the highest resident size so far, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def child(asked: Question, peer: Peer | None) -> None:
    """Run the question once, ours or the peer's, and print the peak and the size before, in MiB."""
    _reset_peak()
    before = _status("VmRSS")
    if peer is None:
        run_ours(asked, 0)
    else:
        run_peer(asked, peer, 0)
    peak = _status("VmHWM")
    if peak is None or before is None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 0
    print(json.dumps({"peak_mib": peak / MIB, "before_mib": before / MIB}))


def peaks(arguments: list[str], names: list[str]) -> dict[str, Any]:
    """Peak memory by library: this script in a child process with `--child NAME`, in turn.

    Of several runs the one in the middle: which freed blocks can be used again differs by a tenth.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(RUNS):
        for name in names:
            found[name].append(_peak([*arguments, "--child", name]))
    return {name: _middle(runs) for name, runs in found.items()}


def _peak(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, check=False
    )
    last = done.stdout.strip().splitlines()[-1:]
    said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    peak: dict[str, Any] = json.loads(last[0]) if done.returncode == 0 and last else {}
    return peak or {"failed": said}


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    failed = [run for run in runs if "failed" in run]
    if failed:
        return failed[0]
    beyond = sorted(runs, key=lambda run: float(run["peak_mib"] - run["before_mib"]))
    sizes = [run["peak_mib"] - run["before_mib"] for run in beyond]
    return {**beyond[len(runs) // 2], "beyond_mib": sizes}
