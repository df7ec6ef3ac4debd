"""A process that does one job: the record comes on stdin, what was made goes to stdout as JSON."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from ..core.errors import Interrupted, UserError
from .jobs import Job, Place, run


def main() -> int:
    """Exit codes as of the command line: 0 done, 2 bad input, 3 our defect, 130 interrupted."""
    message = json.loads(sys.stdin.read())
    raw = message["place"]
    data = raw["data_dir"]
    place = Place(
        **{
            **raw,
            "results_dir": Path(raw["results_dir"]),
            "data_dir": None if data is None else Path(data),
        }
    )
    answer, sys.stdout = sys.stdout, sys.stderr  # stdout belongs to the answer
    try:
        made = run(Job.of(message["job"]), place)
    except UserError as error:
        print(f"{error.message}{f' ({error.hint})' if error.hint else ''}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt):
        return 130
    except Exception:
        traceback.print_exc()
        return 3
    answer.write(json.dumps(made))
    return 0


if __name__ == "__main__":
    sys.exit(main())
