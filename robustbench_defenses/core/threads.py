"""How the threads of OpenMP wait for each other; decided before torch is loaded."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOAD = Path("/proc/loadavg")
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
LOOKS = 3


def yield_on_a_busy_machine(load: Path = LOAD) -> bool:
    """Let waiting threads sleep where others work on the cores they want; says whether it does.

    GNU's OpenMP spins at a barrier. On idle cores that is the fastest (small networks train up to
    1.5 times as fast), but two processes that spin on the same cores keep each other from the work
    they wait for, and take ten times as long or more. What the environment chooses is left alone,
    and so is everything where the kernel does not tell how many tasks run.
    """
    if any(name in os.environ for name in CHOSEN) or not _others_run(load):
        return False
    os.environ["OMP_WAIT_POLICY"] = "passive"
    return True


def _others_run(load: Path) -> bool:
    """More tasks run than cores are left by the threads of this process, each time one looks."""
    cores = os.cpu_count() or 1
    own = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(own) if own.isdecimal() else cores
    for look in range(LOOKS):
        if look:
            time.sleep(0.002)
        try:
            running = int(load.read_text().split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return False
        if running - 1 + threads <= cores:  # this process is one of those that run
            return False
    return True
