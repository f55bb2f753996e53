"""Environments: JAX-native ones, Gymnasium's behind one batched interface, and the table of known ids.

Nothing is imported here, so that a JAX-native environment does not need Gymnasium.
"""
