"""One of two processes that exchange messages: `python exchanges.py PORT INDEX`. Run by `test_group`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np

from prune_rl.processes.agreement import check_alike, check_shared
from prune_rl.processes.group import ProcessGroup, ProcessLost
from prune_rl.processes.join import Distributed, joined
from prune_rl.runs.checkpoint_parts import Part
from prune_rl.runs.checkpoints import Checkpoints


def refusal(check: object, *arguments: object) -> str:
    """What a check says against its arguments."""
    try:
        check(*arguments)  # type: ignore[operator]
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(port: str, index: int, folder: Path) -> None:
    said: dict[str, object] = {}
    try:
        with joined(Distributed(f"localhost:{port}", 2, index)) as group:
            each = group.gather("numbers", {"x": np.arange(3) + 10 * index, "none": None})
            said["gathered"] = [message["x"].tolist() for message in each]
            said["largest"] = group.largest("widths", {"a": 5 - index, "b": index})
            said["share"] = list(group.share(6, "seeds"))
            said["uneven"] = refusal(group.share, 3, "seeds")
            calls: list[int] = []

            def value() -> str:
                calls.append(index)
                return "of process 0"

            said["first"] = group.from_first("value", value)
            said["calls"] = calls
            said["failed"] = refusal(group.from_first, "failure", lambda: int("no number"))
            said["alike"] = refusal(check_alike, group, {"seeds": 4})
            said["unlike"] = refusal(check_alike, group, {"seeds": 4 + index})
            (folder / "config.json").write_text("{}")
            said["seen"] = refusal(check_shared, group, folder)
            said["unseen"] = refusal(check_shared, group, folder / f"of_{index}", 0.0)
            said["restored"] = checkpoint(group, folder / "checkpoints")
            if index == 1:
                raise ValueError("a mistake")
            group.gather("never", None)
    except (ValueError, ProcessLost) as error:
        said["end"] = f"{type(error).__name__}: {error}"
    (folder / f"said_{index}.json").write_text(json.dumps(said))


def checkpoint(group: ProcessGroup, path: Path) -> list[float]:
    """The sums of what this process gets back of its part; `shared` is the same in both."""
    index = group.index
    keys = jax.random.split(jax.random.key(index), 2)
    part = Part(group, {"x": False, "shared": True, "empty": False, "key": False})
    tree = {
        "x": np.full((2, 3), 1.0 + index, np.float32),
        "shared": np.int32(7),
        "empty": np.zeros((2, 0), np.float32),
        "key": keys,
    }
    if group.is_first:  # as where a dense control goes on from a part of the pruned run
        alone = Checkpoints(path.with_name("alone"))
        alone.save(1, tree)
        alone.close()
    checkpoints = Checkpoints(path, part=part)
    for step in (1, 2, 3):
        checkpoints.save(step, tree, {"widths": {}})
    checkpoints.close()
    again = Checkpoints(path, part=part)
    found = again.restore(tree)
    again.close()
    assert found is not None
    assert found.step == 3
    np.testing.assert_array_equal(jax.random.key_data(found.tree["key"]), jax.random.key_data(keys))
    return [float(found.tree["x"].sum()), float(found.tree["shared"])]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
