"""The method: neuron groups, importance, proximal step, thresholds, compaction. Knows pytrees and optax only."""
