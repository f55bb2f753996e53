"""The method as optax transformations: `track_importance`, `proximal_step`, `zero_masked`, and their compositions."""
