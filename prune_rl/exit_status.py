"""Exit statuses of the commands beside 0; after a signal it is 128 and the signal's number."""

ENVIRONMENT_CRASHED = 1
USAGE_ERROR = 2
# Some seeds have no policy, since their environments gave values that nothing can be learned from, or their training
# diverged; the others ended normally.
SEED_WITHOUT_POLICY = 3
# All seeds do: training cannot go on.
NO_SEED_LEFT = 4
# Of several processes that train together another one ended.
OTHER_PROCESS_ENDED = 5
# `python -m prune_rl.bench_device` found nothing to measure on, or some of what it should measure failed.
NO_ACCELERATOR = 6
NOT_ALL_MEASURED = 7
# The run has a result.
ENDED_WELL = (0, SEED_WITHOUT_POLICY)
