"""`python -m robustbench_defenses` is `rrd`."""

from .cli.main import run

run()
