from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import pytest

from prune_rl.atomic_files import write_bytes, write_json
from prune_rl.runs.directory import RunDirectory, RunDirectoryError

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "env_id": "CartPole-v1",
    "command": "prune-rl train --env CartPole-v1",
    "ppo": {"hidden": (256, 256), "learning_rate": 3e-4, "clip_value": None},
    "prune": {"sparsity": 0.95},
}


def changed(**changes: Any) -> dict[str, Any]:
    return CONFIG | changes


def test_a_new_folder_holds_the_resolved_configuration(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "runs" / "one", CONFIG) as run:
        assert not run.continued
        assert run.notes == []
        assert run.config["ppo"]["hidden"] == [256, 256]
    text = (run.path / "config.json").read_text()
    stored = json.loads(text)
    assert stored == run.config == json.loads(json.dumps(CONFIG))
    assert list(stored) == sorted(stored)
    assert not list(run.path.glob("*.partial"))


def test_versions_name_what_can_change_a_result(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", CONFIG) as run:
        versions = json.loads((run.path / "versions.json").read_text())
    assert versions["jax"] == jax.__version__
    assert versions["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert versions["device"]["kind"] == jax.devices()[0].device_kind
    assert versions["device"]["count"] == len(jax.devices())
    for name in ("jaxlib", "flax", "optax", "gymnasium", "numpy"):
        assert versions[name][0].isdigit()
    checkout = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False
    )
    if checkout.returncode == 0 and Path(checkout.stdout.strip()).resolve() == ROOT:
        assert isinstance(versions["git"]["dirty"], bool)
        assert versions["git"]["commit"] is None or len(versions["git"]["commit"]) == 40
    else:
        assert versions["git"] is None


def test_the_same_configuration_continues(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", CONFIG).close()
    before = (
        (tmp_path / "run" / "config.json").read_bytes(),
        (tmp_path / "run" / "versions.json").read_bytes(),
    )
    os.rename(tmp_path / "run", tmp_path / "moved")
    with RunDirectory.open(tmp_path / "moved", changed(command="make experiment ENV=CartPole-v1")) as run:
        assert run.continued
        assert run.notes == []
    after = (run.path / "config.json").read_bytes(), (run.path / "versions.json").read_bytes()
    assert before == after


def test_another_configuration_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunDirectory.open(path, CONFIG).close()
    other = changed(ppo=CONFIG["ppo"] | {"learning_rate": 1e-3}, env_id="LunarLander-v2", new=True, prune={})
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.open(path, other)
    assert str(caught.value) == (
        f"the run directory {path} belongs to another configuration "
        '(env_id = "CartPole-v1" there, "LunarLander-v2" here, new = absent there, true here, '
        "ppo.learning_rate = 0.0003 there, 0.001 here, and 1 more): choose another --run-dir, or delete it"
    )
    # The refusal frees the lock and changes nothing.
    RunDirectory.open(path, CONFIG).close()


def test_a_field_that_is_newer_than_the_folder_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunDirectory.open(path, CONFIG).close()
    before = (path / "config.json").read_bytes()
    newer: dict[str, Any] = changed(
        resets=20,
        ppo={**CONFIG["ppo"], "vf_coef": 0.5, "hidden": (256, 256)},
        prune={"sparsity": 0.95, "gate": None},
    )
    # What the folder has stays as it is: a default fills in only what is absent.
    defaults = {
        "resets": 20,
        "ppo": {"vf_coef": 0.5, "hidden": (8,)},
        "prune": {"sparsity": 0.1, "gate": None},
    }
    with RunDirectory.open(path, newer, defaults=defaults) as run:
        assert run.continued
    assert (path / "config.json").read_bytes() == before
    for other, part in (
        ({**newer, "resets": 19}, "resets = 20 there, 19 here"),
        ({**newer, "prune": {"sparsity": 0.95, "gate": 0.1}}, "prune.gate = null there, 0.1 here"),
        ({**newer, "ppo": CONFIG["ppo"]}, "ppo.vf_coef = 0.5 there, absent here"),
    ):
        with pytest.raises(RunDirectoryError, match=re.escape(part)):
            RunDirectory.open(path, other, defaults=defaults)
    with pytest.raises(RunDirectoryError, match="absent there"):
        RunDirectory.open(path, newer)


def test_what_does_not_change_the_result_may_differ(tmp_path: Path) -> None:
    wanted = changed(checkpoints=20)
    RunDirectory.open(tmp_path, wanted).close()
    with RunDirectory.open(tmp_path, changed(checkpoints=3), not_compared=("command", "checkpoints")) as run:
        assert run.continued
    assert json.loads((tmp_path / "config.json").read_text())["checkpoints"] == 20
    with pytest.raises(RunDirectoryError, match="checkpoints = 20 there, 3 here"):
        RunDirectory.open(tmp_path, changed(checkpoints=3))


@pytest.mark.parametrize(("there", "here"), [(1, True), (0, False), (1, 1.0), ([1], [1, 2]), (None, 0)])
def test_values_that_python_calls_equal_still_differ(tmp_path: Path, there: Any, here: Any) -> None:
    RunDirectory.open(tmp_path / "run", {"x": there}).close()
    with pytest.raises(RunDirectoryError, match="x = "):
        RunDirectory.open(tmp_path / "run", {"x": here})


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"it holds 'thesis.tex' but no config.json"):
        RunDirectory.open(tmp_path, CONFIG)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00"])
def test_a_damaged_configuration_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        RunDirectoryError,
        match=r"config.json is damaged .*, it has no copy: checkpoints, log and policies beside it",
    ):
        RunDirectory.open(tmp_path, CONFIG)


def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("pid 1\n")
    leftovers = [".config.json.0123456789ab.partial", "masks/.step_000000000001.npz.ba9876543210.partial"]
    (tmp_path / "masks").mkdir()
    for name in leftovers:
        (tmp_path / name).write_text('{"env')
    (tmp_path / "masks" / ".mine.partial").write_text("not ours")
    with pytest.raises(RunDirectoryError, match="it holds 'masks' but no config"):
        RunDirectory.open(tmp_path, CONFIG)
    assert not any((tmp_path / name).exists() for name in leftovers)
    assert (tmp_path / "masks" / ".mine.partial").read_text() == "not ours"
    shutil.rmtree(tmp_path / "masks")
    with RunDirectory.open(tmp_path, CONFIG) as run:
        assert not run.continued


def test_unusable_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunDirectoryError, match="a file has that name"):
            RunDirectory.open(path, CONFIG)


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), {1, 2}])
def test_a_configuration_that_is_not_json(tmp_path: Path, value: Any) -> None:
    with pytest.raises(RunDirectoryError, match="cannot be written as JSON"):
        RunDirectory.open(tmp_path / "run", {"x": value})
    assert not (tmp_path / "run").exists()


def test_changed_versions_are_noted_once(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    versions = json.loads((tmp_path / "versions.json").read_text())
    write_json(tmp_path / "versions.json", versions | {"jax": "0.1.0"})
    with RunDirectory.open(tmp_path, CONFIG) as run:
        (note,) = run.notes
        assert f'jax "0.1.0" -> "{jax.__version__}"' in note
    recorded = json.loads((tmp_path / "versions.json").read_text())
    assert recorded["jax"] == "0.1.0"
    assert recorded["continued_with"] == [versions]
    with RunDirectory.open(tmp_path, CONFIG) as run:
        assert run.notes == []


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '{"continued_with": 5}', '{"continued_with": [5]}', '{"a": 1e400}']
)
def test_damaged_versions_are_noted_and_kept(tmp_path: Path, content: str) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    versions = (tmp_path / "versions.json").read_text()
    (tmp_path / "versions.json").write_text(content)
    with RunDirectory.open(tmp_path, CONFIG) as run:
        (note,) = run.notes
    assert re.match(
        r"versions.json was damaged \(.*\) and was written anew: what the run began with is not known", note
    )
    assert (tmp_path / "versions.json").read_text() == versions
    assert (tmp_path / "versions.json.damaged").read_text() == content


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "[" * 100_000, '{"env_id": 1e400}'])
def test_a_damaged_configuration_comes_back_from_its_copy(tmp_path: Path, content: str | None) -> None:
    RunDirectory.open(tmp_path, CONFIG).close()
    (tmp_path / "checkpoints").mkdir()
    good = (tmp_path / "config.json").read_bytes()
    if content is None:
        (tmp_path / "config.json").unlink()
    else:
        (tmp_path / "config.json").write_text(content)
    with RunDirectory.open(tmp_path, CONFIG) as run:
        assert run.continued
        (note,) = run.notes
        assert note.startswith("config.json was gone" if content is None else "config.json was damaged (")
        assert note.endswith("and was restored from its copy")
    assert (tmp_path / "config.json").read_bytes() == good
    # A damaged copy alone does no harm; a run of an earlier version has none, and gets one.
    (tmp_path / ".config-copy.json").unlink()
    with RunDirectory.open(tmp_path, CONFIG) as run:
        assert run.notes == []
    assert (tmp_path / ".config-copy.json").read_bytes() == good
    (tmp_path / "config.json").write_text("{")
    (tmp_path / ".config-copy.json").write_text("{")
    with pytest.raises(
        RunDirectoryError, match=r"is damaged \(.*\), its copy too \(.*\): checkpoints, log and policies"
    ):
        RunDirectory.open(tmp_path, CONFIG)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("years of work")
    (tmp_path / "run").mkdir()
    for name in ("precious", "nothing"):
        (tmp_path / "run" / ".lock").symlink_to(tmp_path / name)
        with pytest.raises(RunDirectoryError, match=r"\.lock is a link, and a lock is not taken through one"):
            RunDirectory.open(tmp_path / "run", CONFIG)
        (tmp_path / "run" / ".lock").unlink()
    assert target.read_text() == "years of work"
    assert not (tmp_path / "nothing").exists()
    # Who holds the lock is written beside it, and replaces a link.
    (tmp_path / "run" / ".lock-owner").symlink_to(target)
    RunDirectory.open(tmp_path / "run", CONFIG).close()
    assert target.read_text() == "years of work"


def test_a_folder_in_use_can_be_waited_for(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    said: list[str] = []

    def free(sentence: str) -> None:
        said.append(sentence)
        threading.Timer(0.2, holder.kill).start()

    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with RunDirectory.open(tmp_path, {"x": 1}, wait=free) as run:
            assert run.continued
    finally:
        holder.kill()
        holder.communicate()
    assert said == [f"the run directory {tmp_path} is in use by another training process (pid {holder.pid})"]


HOLD = """
import sys, time
from prune_rl.runs.directory import RunDirectory
run = RunDirectory.open(sys.argv[1], {"x": 1})
print("open", flush=True)
time.sleep(60)
"""


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(
            RunDirectoryError, match=rf"in use by another training process \(pid {holder.pid}\)"
        ):
            RunDirectory.open(tmp_path, {"x": 1})
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    # The operating system freed the lock.
    with RunDirectory.open(tmp_path, {"x": 1}) as run:
        assert run.continued
        with pytest.raises(RunDirectoryError, match="in use"):
            RunDirectory.open(tmp_path, {"x": 1})
    run.close()


def test_nothing_of_the_command_needs_fcntl(tmp_path: Path) -> None:
    """As on Windows, which has none."""
    code = (
        "import sys, warnings; sys.modules['fcntl'] = None\n"
        "warnings.filterwarnings('ignore', 'only soft file lock is available')\n"
        "import prune_rl.cli.train, prune_rl.training.experiment, prune_rl.reporting.compare_runs\n"
        "from prune_rl.runs.directory import RunDirectory\n"
        "run = RunDirectory.open(sys.argv[1], {'x': 1})\n"
        "try: RunDirectory.open(sys.argv[1], {'x': 1})\n"
        "except ValueError as error: print(error)\n"
        "run.close()\n"
        "print(RunDirectory.open(sys.argv[1], {'x': 1}).continued)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    in_use, continued = result.stdout.splitlines()
    assert "is in use by another training process (pid " in in_use
    assert continued == "True"


def test_closing_twice_frees_nobody_elses_lock(tmp_path: Path) -> None:
    first = RunDirectory.open(tmp_path, CONFIG)
    first.close()
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != ".lock") == [
        ".config-copy.json",
        "config.json",
        "versions.json",
    ]
    with RunDirectory.open(tmp_path, CONFIG):
        first.close()
        with pytest.raises(
            RunDirectoryError, match=rf"in use by another training process \(pid {os.getpid()}\)"
        ):
            RunDirectory.open(tmp_path, CONFIG)


WRITE_FOREVER = """
import sys
from prune_rl.atomic_files import write_json
number = 0
while True:
    number += 1
    write_json(sys.argv[1], {"number": number, "filling": [number] * 20000})
    print(number, flush=True)
"""


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    seen = set()
    for _ in range(100):
        value = json.loads(path.read_text())
        assert value["filling"] == [value["number"]] * 20000
        seen.add(value["number"])
    process.send_signal(signal.SIGKILL)
    reported = int(process.communicate()[0].split()[-1]) if len(seen) > 1 else 1
    value = json.loads(path.read_text())
    assert value["number"] in (reported, reported + 1)
    assert value["filling"] == [value["number"]] * 20000


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]
    mask = os.umask(0o022)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
