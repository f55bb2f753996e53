"""Messages between two real processes, what they refuse, and the checkpoint that they write together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import prune_rl
from prune_rl.processes.group import ALONE
from prune_rl.processes.join import Distributed
from prune_rl.runs.checkpoints import Checkpoints

TIMEOUT = 240.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """What each of the two processes wrote, and their folder."""
    folder, port = tmp_path_factory.mktemp("exchanges"), free_port()
    for index in (0, 1):
        (folder / f"of_{index}").mkdir()
    (folder / "of_0" / "config.json").write_text("{}")
    script = str(Path(__file__).with_name("exchanges.py"))
    started = [
        subprocess.Popen(
            [sys.executable, script, str(port), str(index), str(folder)],
            env=os.environ | {"PYTHONPATH": str(Path(prune_rl.__file__).parents[1])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (0, 1)
    ]
    outputs = [process.communicate(timeout=TIMEOUT)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    return [json.loads((folder / f"said_{index}.json").read_text()) for index in (0, 1)], folder


def test_messages(said: tuple[list[dict[str, Any]], Path]) -> None:
    zero, one = said[0]
    for each in (zero, one):
        assert each["gathered"] == [[0, 1, 2], [10, 11, 12]]
        assert each["largest"] == {"a": 5, "b": 1}
        assert each["alike"] == ""
        assert each["seen"] == ""
    assert (zero["share"], one["share"]) == ([0, 1, 2], [3, 4, 5])
    assert zero["first"] == one["first"] == "of process 0"
    assert (zero["calls"], one["calls"]) == ([0], [])


def test_refusals(said: tuple[list[dict[str, Any]], Path]) -> None:
    zero, one = said[0]
    assert zero["failed"].startswith("ValueError: invalid literal")
    assert one["failed"].startswith("FirstProcessError: invalid literal")
    for each in (zero, one):
        assert "3 seeds cannot be shared equally by 2 processes: give a multiple of 2" in each["uneven"]
        assert "seeds is 4 in process 0 and 5 in process 1" in each["unlike"]
        assert "process 1 of 2 does not see the run directory" in each["unseen"]


def test_an_error_in_one_process_ends_the_other(said: tuple[list[dict[str, Any]], Path]) -> None:
    zero, one = said[0]
    assert one["end"] == "ValueError: a mistake"
    assert zero["end"].startswith("ProcessLost: process 1 of 2 (")
    assert "ended: a mistake. The same command on all hosts goes on" in zero["end"]


def test_one_checkpoint_of_both_which_a_single_process_reads_too(
    said: tuple[list[dict[str, Any]], Path],
) -> None:
    (zero, one), folder = said
    assert (zero["restored"], one["restored"]) == ([6.0, 7.0], [12.0, 7.0])
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.steps() == [2, 3]
    template = {
        "x": np.zeros((4, 3), np.float32),
        "shared": np.int32(0),
        "empty": np.zeros((4, 0), np.float32),
        "key": jax.random.split(jax.random.key(0), 4),
    }
    found = checkpoints.restore(template)
    assert found is not None
    np.testing.assert_array_equal(found.tree["x"][:, 0], [1, 1, 2, 2])
    # A checksum per part, which finds damage where the checksums of the files are not there yet.
    newest = folder / "checkpoints" / "step_000000000003"
    (newest / "sha256.json").unlink()
    again = Checkpoints(folder / "checkpoints")
    assert again.restore(template) is not None
    assert again.notes == []
    for each in (checkpoints, again):
        each.close()


def test_alone_nothing_is_exchanged() -> None:
    assert ALONE.gather("x", 3) == [3]
    assert ALONE.from_first("x", lambda: 4) == 4
    assert list(ALONE.share(3, "seeds")) == [0, 1, 2]


@pytest.mark.parametrize(
    ("distributed", "sentence"),
    [
        (Distributed("somewhere", 2, 0), "--coordinator must be HOST:PORT, got 'somewhere'"),
        (Distributed("localhost:1", 0, 0), "--num-processes must be >= 1, got 0"),
        (Distributed("localhost:1", 2, 2), "--process-id must be >= 0 and below --num-processes 2, got 2"),
    ],
)
def test_values_that_cannot_be(distributed: Distributed, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        distributed.check()
