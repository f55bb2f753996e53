"""What `make bench-device` runs: how training scales on an accelerator, measured in a few minutes, in ratios."""
