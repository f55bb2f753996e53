"""Files of a run directory that hold what no run writes: one sentence each, or no notice at all."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prune_rl.reporting.compare_runs import aggregate
from prune_rl.reporting.plots import draw
from prune_rl.reporting.run_summary import write_summary
from prune_rl.runs.checkpoints import Checkpoints
from prune_rl.runs.config_file import read_config
from prune_rl.runs.directory import RunDirectory, RunDirectoryError
from prune_rl.runs.evaluation_file import read_evaluation
from prune_rl.runs.frontier import FrontierFolder, read_frontier
from prune_rl.runs.json_text import parse
from prune_rl.runs.logging import MetricsLog, read_metrics
from prune_rl.runs.mask_history import MaskHistory
from prune_rl.training.engines.timing import Timing
from tests.reporting.drawn_runs import make_run
from tests.runs.train_states import make_state, step_folder

HOSTILE = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"step":1e400}',
    '{"step":-1e400}',
    '{"step":' + "9" * 5000 + "}",
    "\ufeff{}",
    "NaN",
    '"x"',
    "3",
]


@pytest.mark.parametrize("text", [*HOSTILE[:5], "NaN", '{"a": Infinity}', b"\xff\xfe"])
def test_json_that_is_not_plain_is_a_value_error(text: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_every_reader_says_which_file_is_damaged(tmp_path: Path, text: str) -> None:
    readers: dict[str, Any] = {
        "config.json": read_config,
        "evaluation.json": read_evaluation,
        "frontier.json": read_frontier,
        "metrics.jsonl": lambda run: read_metrics(run / "metrics.jsonl"),
    }
    for name, read in readers.items():
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name} is damaged") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        if name != "metrics.jsonl":
            with pytest.raises(ValueError, match=name):
                read(tmp_path)
        (tmp_path / name).rmdir()
    (tmp_path / "timing.json").write_text(text, encoding="utf-8")
    assert Timing.read(tmp_path / "timing.json") == Timing()


@pytest.mark.parametrize("value", ["x", None, True, [1], {}])
def test_a_timing_of_another_type_is_none(tmp_path: Path, value: Any) -> None:
    (tmp_path / "timing.json").write_text(json.dumps(Timing(total=3.0).to_json() | {"evaluation": value}))
    assert Timing.read(tmp_path / "timing.json") == Timing()


@pytest.mark.parametrize("what", ["folder", *HOSTILE])
def test_checkpoints_whose_sums_are_nonsense(tmp_path: Path, what: str) -> None:
    writing = Checkpoints(tmp_path)
    for step in (1, 2):
        writing.save(step, make_state(step))
    writing.close()
    sums = step_folder(tmp_path, 2) / "sha256.json"
    sums.unlink()
    if what == "folder":
        sums.mkdir()
    else:
        sums.write_text(what, encoding="utf-8")
    for name in ("step_²", "step_٣", "step_5", "step_x"):
        (tmp_path / name).mkdir()
    checkpoints = Checkpoints(tmp_path)
    found = checkpoints.restore(make_state(0))
    assert found is not None
    # The header has a checksum of its own.
    assert found.step == 2
    checkpoints.save(3, make_state(3))
    checkpoints.close()


def test_names_that_only_look_like_steps_are_not_looked_at(tmp_path: Path) -> None:
    history, frontier = MaskHistory(tmp_path / "masks"), FrontierFolder(tmp_path)
    history.write(128, {"actor/layer_0": np.ones((1, 3), bool)})
    frontier.path.mkdir()
    (frontier.path / "step_000000000128").mkdir()
    for name in (
        "step_²",
        "step_٣",
        "step_5",
        "step_",
        "step_-00000000001",
        "step_1e3",
        "step_0000000000128",
    ):
        (tmp_path / "masks" / f"{name}.npz").write_bytes(b"")
        (frontier.path / name).mkdir()
    assert history.steps() == frontier.steps() == [128]
    history.rewind(0)
    frontier.rewind(0)
    assert history.steps() == frontier.steps() == []


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 40, None])
def test_damaged_masks_are_noted(tmp_path: Path, content: bytes | None) -> None:
    history = MaskHistory(tmp_path)
    for step in (1, 2, 3):
        history.write(step, {"actor/layer_0": np.arange(3)[None] < step})
    file = tmp_path / "step_000000000002.npz"
    file.write_bytes(file.read_bytes()[:-30] if content is None else content)
    again = MaskHistory(tmp_path)
    again.rewind(3)
    (note,) = again.notes
    assert "step_000000000002.npz is damaged" in note
    assert "the masks from step 2 to the next change are lost, nothing else is" in note
    again.rewind(1)
    assert again.steps() == [1]


VALUES = [
    None,
    True,
    5,
    -1.5,
    "x",
    "9" * 300,
    [],
    {},
    [5],
    ["x"],
    [[1]],
    {"a": 5},
    {"a": [5]},
    1e308,
    1 << 63,
]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value inside of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, entry in inner for place in places(entry, (*at, key))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("hostile") / "run", 1)
    write_summary(run)
    aggregate([run])
    return run


class Input(str):
    """The arguments of `draw`, equal to others that say the same."""

    arguments: tuple[Any, ...]


@pytest.fixture(scope="module")
def pictures_drawn_once() -> Iterator[None]:
    """Each different picture is drawn once: most values that are replaced are in none."""

    @functools.cache
    def drawn(key: Input) -> bytes:
        return draw(*key.arguments)

    def draw_once(*arguments: Any) -> bytes:
        key = Input(repr(arguments))
        key.arguments = arguments
        return drawn(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prune_rl.reporting.run_summary.draw", draw_once)
        yield


@settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("pictures_drawn_once")
@given(data=st.data())
def test_any_value_in_any_place_is_reported_or_refused(whole: Path, data: Any) -> None:
    """The reports of a run in which one value was replaced: a `ValueError` at most."""
    name = data.draw(st.sampled_from(["config.json", "evaluation.json", "versions.json", "metrics.jsonl"]))
    file = whole / name
    good = file.read_bytes()
    lines = good.decode().splitlines() if name == "metrics.jsonl" else [good.decode()]
    row = data.draw(st.integers(0, len(lines) - 1)) if len(lines) > 1 else 0
    document = json.loads(lines[row])
    place = data.draw(st.sampled_from(places(document)))
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = data.draw(st.sampled_from(VALUES))
    lines[row] = json.dumps(document)
    try:
        file.write_text("\n".join(lines) + "\n")
        for report in (lambda: write_summary(whole), lambda: aggregate([whole])):
            with contextlib.suppress(ValueError):
                report()
    finally:
        file.write_bytes(good)


def test_a_run_with_hostile_files_is_continued_or_refused(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"x": 1}) as run:
        pass
    for text in HOSTILE:
        (run.path / "config.json").write_text(text, encoding="utf-8")
        with RunDirectory.open(run.path, {"x": 1}) as again:
            assert again.continued
        shutil.rmtree(run.path)
        run.path.mkdir()
        (run.path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunDirectoryError, match=r"config.json is damaged"):
            RunDirectory.open(run.path, {"x": 1})
        (run.path / "config.json").unlink()
        with RunDirectory.open(run.path, {"x": 1}):
            pass
    log = MetricsLog(run.path / "metrics.jsonl")
    log.close()
