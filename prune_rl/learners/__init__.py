"""Learners: pure functions over a train state that carries masks. They know no environment."""
