"""Runs any attack over any number of examples; makes every model call."""
