"""The neurons of each kind of architecture that Torch-Pruning lists, and whether they can be removed exactly.

    .venv/bin/python -m experiments.architectures

Each kind is a small network of plain JAX functions with the connections of its namesake: for every one, the groups are
found, half of the neurons are masked at random, and the compacted function is compared with the masked one on random
inputs. The table is that of docs/architectures.md.
"""

from experiments.architectures.kinds import table

if __name__ == "__main__":
    print(table())
