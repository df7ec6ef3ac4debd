"""Where a training ran: versions, commit, command."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name, package in (("rrd", "robustbench-defenses"), ("torch", "torch")):
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def git_commit() -> str | None:
    """The commit of this package's sources, or None when they are not a git checkout's own."""
    folder = Path(__file__).resolve().parent
    commands = (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"])
    output = ""
    for arguments in commands:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True, text=True, timeout=10, check=True,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            return None
        output = done.stdout.strip()
    return output or None


def command() -> str:
    """The command line of this process as one would type it."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if name == "__main__.py":  # python -m robustbench_defenses
        name = "rrd"
    return shlex.join([name, *sys.argv[1:]])
