"""The training loop: phases, precision, checkpoints, resume."""
