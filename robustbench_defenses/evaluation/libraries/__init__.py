"""Which attack of ours is which attack of foolbox and pyautoattack, at equal parameters.

Facts about the libraries, nothing of how they are run (`backends.py` does that). A parameter that a
library cannot take is a `UserError`; what it always does otherwise is said in the call's `remark`.
The libraries are imported when an attack of theirs is made.
"""

from __future__ import annotations

from typing import Any

from ...core import registry
from ...core.errors import UserError
from . import autoattack, foolbox
from .call import Call as Call
from .call import Make
from .call import Run as Run
from .call import Work as Work

BACKENDS = ("native", "foolbox", "autoattack")
PACKAGES = {"foolbox": "foolbox", "autoattack": "pyautoattack"}
_CALLS: dict[str, dict[str, Make]] = {"foolbox": foolbox.CALLS, "autoattack": autoattack.CALLS}


def knows(backend: str, name: str) -> bool:
    """True where the library has an attack that does what `name` does, and what that needs."""
    family = registry.find("attack", name).family
    runs = family != "brendel_bethge" or foolbox.compiles()
    return family in _CALLS[backend] and runs


def call_for(backend: str, family: str, attack: Any, targeted: bool, classes: int) -> Call:
    """The library call for `attack`, an entry of `family`; `UserError` where there is none."""
    known = _CALLS[backend]
    if family not in known:
        raise UserError(
            f"{PACKAGES[backend]} has no attack that does what {family} does",
            hint=f"--backend {backend} answers {', '.join(known)}",
        )
    return known[family](attack, targeted, classes)
