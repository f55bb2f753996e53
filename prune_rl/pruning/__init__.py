"""The method: importance, proximal step, mask schedule, masks, refit. Knows pytrees, optax and
`prune_rl.dependency`.
"""
