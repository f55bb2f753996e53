"""The README and the pages under docs/: their code runs, and what they name exists."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import grid_engines
from experiments.benchmarks import __main__ as benchmarks
from experiments.device import onnx2c
from prune_rl import cli
from prune_rl.bench_device import __main__ as bench_device
from prune_rl.export.policy import Policy, save_policy
from prune_rl.learners.pruning_config import Pruning
from prune_rl.spaces import Discrete

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RESULTS = sorted((ROOT / "experiments" / "results").glob("*.md"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_blocks(path: Path, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.S | re.M)
    return [code for name, code in blocks if name == language]


def without_code(text: str) -> str:
    """The prose, in which brackets and parentheses are links."""
    return re.sub(r"`[^`\n]*`", "`…`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)", README.read_text()))
    assert linked == {name_of(path) for path in PAGES if path != README}


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        if not link.startswith("https://"):
            file, _, fragment = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), link
            assert not fragment or fragment in anchors(target), link


@pytest.mark.parametrize("path", [*PAGES, *RESULTS], ids=name_of)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(path: Path) -> None:
    tables = re.findall(
        r"(?:^\|.*\n)+", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M), re.M
    )
    for table in tables:
        rows = table.splitlines()
        assert set(rows[1]) <= set("|-: ")
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {rows[1].count("|")}, rows[0]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_name_of_the_package_exists(path: Path) -> None:
    for dotted in re.findall(r"\bprune_rl((?:\.[A-Za-z_]\w*)+)", path.read_text()):
        found: Any = importlib.import_module("prune_rl")
        for part in dotted.removeprefix(".").split("."):
            assert hasattr(found, part) or importlib.import_module(f"{found.__name__}.{part}"), dotted
            found = getattr(found, part)
    for file in re.findall(r"\bprune_rl(?:/\w+)+(?:\.py)?", path.read_text()):
        assert (ROOT / file).exists(), file


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag that the help of commands and benchmarks lists, and one per field of the pruning options."""
    shown = []
    for arguments in (
        ["train", "CartPole-v1"],
        ["train", "CartPole-v1", "--algo", "sac"],
        ["evaluate"],
        ["choose"],
        ["report"],
        ["export"],
        ["launch"],
        ["status"],
    ):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            cli.main([*arguments, "--help"])
        shown.append(output.getvalue())
    for main in (benchmarks.main, bench_device.main, onnx2c.main, grid_engines.main):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            main(["--help"])
        shown.append(output.getvalue())
    names = [field.name.replace("_", "-") for field in dataclasses.fields(Pruning)]
    pruning = {f"--prune.{prefix}{name}" for name in names for prefix in ("", "no-")}
    return pruning | set(re.findall(r"--[a-z][\w.-]*", "\n".join(shown)))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_flag_exists(path: Path, flags: set[str]) -> None:
    elsewhere = {"--upgrade", "--no-deps", "--any.flag"}  # uv's, pip's, and a placeholder
    elsewhere |= {"--no-index", "--find-links", "--wheel-dir", "--xla_gpu_deterministic_ops"}  # pip's, XLA's
    assert set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", path.read_text())) - elsewhere <= flags


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_make_target_and_variable_exists(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    code = re.findall(r"`(make [^`\n]*)`|^(make .*)$", path.read_text(), re.M)
    for command in (inline or line for inline, line in code):
        words = command.partition("#")[0].split()[1:]
        for target in (word for word in words if re.fullmatch("[a-z]+", word)):
            assert re.search(rf"^{target}:", makefile, re.M), command
        for variable in re.findall(r"\b([A-Z]+)=", command):
            assert re.search(rf"\b{variable}\b", makefile), command


def test_the_figures_of_the_tables_are_those_of_the_summaries() -> None:
    rows = [
        (path, row)
        for path in (README, ROOT / "docs" / "results.md")
        for row in path.read_text().splitlines()
        if row.startswith("|") and "make experiment" in row
    ]
    assert len(rows) == 4 + 4 + 8  # widths found, on both pages, and given
    for path, row in rows:
        (link,) = re.findall(r"\]\(([^)]+-(?:ppo|sac)(?:-found)?\.md)\)", row)
        summary = re.sub(r" +", " ", (path.parent / link).read_text())
        command = dict(re.findall(r"\b(ENV|ALGO|SEEDS)=([\w-]+)", row))
        learner = command.get("ALGO", "ppo").upper()
        assert summary.startswith(f"# {command['ENV']}, {learner}, dynamic pruning, {command['SEEDS']} seeds")
        row = row.replace("−", "-").replace(" %", "%")
        cells = [re.sub(r"`[^`]*`|\]\([^)]*\)", "", cell).strip() for cell in row.split("|")]
        dense, compact = (cell for cell in cells if re.fullmatch(r"\d+\.\d(?: ± \d+\.\d)?", cell))
        assert f"It returns **{compact.split()[0]}**, the dense control {dense.split()[0]};" in summary
        assert f"| {dense}" in summary
        assert f"| {compact}" in summary
        for interval in re.findall(r"[+-]\d+\.\d \[[^]]+\]", row):
            assert f"paired difference {interval} (95% t interval" in summary
        for share in re.findall(r"\d+\.\d%", row):
            assert f"({share})" in summary
        if not link.endswith("-found.md"):
            (widths,) = re.findall(r"\d+·\d+", row)
            assert f"| {widths} |" in summary
            continue
        (left,) = re.findall(r"\| ((?:\d+, )+\d+) \|", row)
        seeds = [line for line in summary.splitlines() if re.match(r"\| \d \|", line) and "±" in line]
        widths_left = [re.findall(r"\| (linear|\d+(?:·\d+)*) \|", line)[-1] for line in seeds]
        found = [0 if widths == "linear" else sum(map(int, widths.split("·"))) for widths in widths_left]
        assert [int(number) for number in left.split(", ")] == found


def table_values(text: str) -> list[tuple[str, ...]]:
    """The cells of every row but for its label."""
    return [
        tuple(c.strip() for c in row.split("|")[2:-1]) for row in text.splitlines() if row.startswith("|")
    ]


def test_the_printed_table_has_the_figures_of_the_summary() -> None:
    (shown,) = (block for block in code_blocks(README, "") if "hidden widths" in block)
    summary = (ROOT / "experiments" / "results" / "CartPole-v1-ppo-seed0.md").read_text()
    assert len(table_values(shown)) == 6
    assert set(table_values(shown)) <= set(table_values(summary))


def test_the_policy_is_loaded_and_acts(tmp_path: Path) -> None:
    weights = np.zeros((4, 2), np.float32), np.array([0, 1], np.float32)
    save_policy(tmp_path, Policy((weights,), "tanh", Discrete(2)))
    for page in (README, ROOT / "docs" / "run-directory.md"):
        (code,) = code_blocks(page, "python")
        scope: dict[str, Any] = {"obs": np.ones(4)}
        exec(code.replace("runs/…/policy", str(tmp_path)), scope)
        assert scope["action"] == 1


@pytest.fixture
def quick_compilation() -> Iterator[None]:
    """Code that takes longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("quick_compilation")
def test_the_changed_lines_of_an_existing_training_prune_it() -> None:
    (diff,) = code_blocks(README, "diff")
    lines = [line for line in diff.splitlines() if not line.startswith(" …")]
    assert 0 < sum(line.startswith("+") for line in lines) <= 5
    code = textwrap.dedent("\n".join(line[1:] for line in lines)).replace("    updates", "updates")
    before, update, after = code.partition("updates, opt_state = tx.update(grads, opt_state, params)\n")
    params = {
        "hidden": {"w": jax.random.normal(jax.random.key(0), (4, 20)), "b": jnp.zeros(20)},
        "out": {"w": jax.random.normal(jax.random.key(1), (20, 3))},
    }

    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"][None, :])
        outputs: jax.Array = hidden @ params["out"]["w"]
        return outputs

    x = jax.random.normal(jax.random.key(2), (32, 4))
    scope: dict[str, Any] = {"optax": optax, "apply": apply, "params": params, "x": x, "steps": 100}
    exec(before, scope)

    @jax.jit
    def step(params: Any, opt_state: Any) -> Any:
        grads = jax.grad(lambda p: jnp.mean(jnp.square(apply(p, x) - jnp.sin(x[:, :3]))))(params)
        inside = {**scope, "grads": grads, "params": params, "opt_state": opt_state}
        exec(update, inside)
        return optax.apply_updates(params, inside["updates"]), inside["opt_state"]

    for _ in range(100):
        scope["params"], scope["opt_state"] = step(scope["params"], scope["opt_state"])
    exec(after, scope)
    assert scope["small"]["hidden"]["w"].shape == (4, 2)
    np.testing.assert_allclose(scope["small_apply"](scope["small"], x), apply(scope["params"], x), atol=1e-5)


@pytest.mark.usefixtures("quick_compilation")
def test_the_code_of_the_library_page_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # it saves a file
    blocks = code_blocks(ROOT / "docs" / "library.md", "python")
    scope: dict[str, Any] = {}
    with jax.numpy_rank_promotion("allow"):  # which the tests forbid, and a reader's program does not
        exec("\n".join(blocks), scope)
    printed = capsys.readouterr().out
    assert "widths={'hidden': 7}" in printed
    assert "{'hidden': 32}" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["masks.safetensors"]
    assert scope["small_again"]["hidden"]["w"].shape == (4, 7)
    assert "{'actor/layer_0': 64, 'actor/layer_1': 64}" in printed
    # Masked slices stay exactly 0 in the proximal step of the last but one block.
    assert not scope["pruned"]["hidden"]["w"][:, ~np.asarray(scope["masks"]["hidden"])].any()
