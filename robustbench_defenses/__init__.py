"""Train adversarial defenses, attack them, and say how robust they really are.

The functions here are the whole public interface; the command `rrd` offers the same.
"""

from __future__ import annotations

__version__ = "0.1.0"
