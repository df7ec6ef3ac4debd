"""What all defenses' presets share; a defense's CARD["presets"] says the rest, and wins.

`smoke`: seconds, for tests and CI. `quick`: real data on two CPU cores in under ten minutes.
`short`: one GPU, the same schedule for every defense of a table. `paper`: as printed.
"""

from __future__ import annotations

from typing import Any

COMMON: dict[str, dict[str, Any]] = {
    "smoke": {"epochs": 2, "batch_size": 64, "validation": 100, "limit_train": 2000},
    "quick": {"epochs": 6},
    "short": {"epochs": 20},
    "paper": {"epochs": 100},
}
