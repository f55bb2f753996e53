"""What joins a learner to an environment: engines, the loop, checkpoints, evaluation, the report."""
