"""One file per defense (or family)."""
