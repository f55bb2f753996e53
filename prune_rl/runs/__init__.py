"""What lies in a run directory: configuration, checkpoints, logs, masks, evaluation file."""
