"""Grids of training runs: environments × methods × seeds from one file, on this machine, Slurm or Ray."""
