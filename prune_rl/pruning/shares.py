"""One share per group, from patterns of their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from prune_rl.pruning.mask_schedule import Share


def shares(groups: Iterable[str], by_pattern: Mapping[str, Share]) -> dict[str, Share]:
    """{group name: share}, the ``sparsity`` of ``update_masks`` and ``dynamic_pruning`` that patterns describe.

    Args:
        groups: from ``find_groups``, or their names.
        by_pattern: {name or pattern: share}; of those that fit a name, the first counts. ``*`` stands for any
            characters, "/" included, ``?`` for one, ``[abc]`` for one of these.

    Raises:
        ValueError: no pattern fits a group, or a pattern fits none.

    Examples:
        >>> shares(["actor/layer_0", "actor/layer_1", "critic/layer_0"], {"critic/*": 0.5, "*_0": 0.75, "*": 0.9})
        {'actor/layer_0': 0.75, 'actor/layer_1': 0.9, 'critic/layer_0': 0.5}
    """
    names = list(groups)
    unused = [pattern for pattern in by_pattern if not any(_fits(name, pattern) for name in names)]
    if unused:
        raise ValueError(f"no group has a name like {unused}; the groups are {names}")
    found = {}
    for name in names:
        fitting = [share for pattern, share in by_pattern.items() if _fits(name, pattern)]
        if not fitting:
            raise ValueError(
                f'no pattern fits group {name!r}, got {list(by_pattern)}: add "*" for the others'
            )
        found[name] = fitting[0]
    return found


def _fits(name: str, pattern: str) -> bool:
    # A name may hold brackets itself, as in "query/kernel[1]".
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
