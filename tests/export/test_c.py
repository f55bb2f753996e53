"""The exported C code: the same actions as NumPy's, compiled with every warning an error."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prune_rl.export import tanh
from prune_rl.export.c.int8 import c_int8_source
from prune_rl.export.c.library import FLAGS, CPolicy, NoCompiler, compile_library, compiler
from prune_rl.export.c.source import CSource, c_source
from prune_rl.export.quantize import quantize
from prune_rl.spaces import Box
from tests.export.random_policies import COUNT, assert_same_actions, observations, random_policy

needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None, reason="there is no C compiler, cc: install gcc"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[CPolicy]:
    """All random policies, compiled in one go."""
    policies = [random_policy(index) for index in range(COUNT)]
    sources = [c_source(policy, f"policy_{index}") for index, policy in enumerate(policies)]
    library = compile_library(sources, tmp_path_factory.mktemp("c"))
    return [CPolicy(policy, each.name, library) for policy, each in zip(policies, sources, strict=True)]


@needs_compiler
@pytest.mark.parametrize("index", range(COUNT))
def test_actions_are_numpy_s(compiled: list[CPolicy], index: int) -> None:
    policy = random_policy(index)
    obs = observations(policy, index)
    assert_same_actions(compiled[index](obs), policy, obs)


@needs_compiler
def test_an_observation_with_nan_gives_a_status_and_no_action(compiled: list[CPolicy]) -> None:
    policy = compiled[0]
    obs = np.zeros(policy.observation_size, np.float32)
    action = np.full(3, 7.0, np.float32)
    assert policy._act(obs.ctypes.data, action.ctypes.data) == 0
    assert (action != 7.0).all()
    before, obs[-1] = action.copy(), np.nan
    assert policy._act(obs.ctypes.data, action.ctypes.data) == 1
    np.testing.assert_array_equal(action, before)
    with pytest.raises(ValueError, match="observation 0 is NaN"):
        policy(obs)


def write(source: CSource, folder: Path) -> Path:
    (folder / f"{source.name}.h").write_text(source.header)
    (folder / f"{source.name}.c").write_text(source.source)
    return folder / f"{source.name}.c"


@pytest.mark.parametrize("program", ["gcc", "clang", "arm-none-eabi-gcc"])
def test_compilers_find_nothing_to_warn_of_and_no_library_is_called(program: str, tmp_path: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    target = ["-mcpu=cortex-m4", "-mthumb"] if program.startswith("arm") else []
    policies = [random_policy(index) for index in (0, 1, 3, 5, 9, 11)]
    codes = [c_source(policy) for policy in policies]
    codes += [c_int8_source(quantize(policy, observations(policy, 0)[1:5])) for policy in policies[:4]]
    for code in codes:
        source, output = write(code, tmp_path), tmp_path / "policy.o"
        command = [program, *FLAGS, "-Wconversion", *target, "-c", str(source), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        symbols = subprocess.run(["nm", "-u", str(output)], capture_output=True, text=True, check=True)
        # Compilers may call memcpy and memset for loops, and soft floats are the compiler's own library.
        called = set(re.findall(r"\bU (\w+)", symbols.stdout))
        assert not {name for name in called if not re.fullmatch("mem(cpy|set)|__aeabi_\\w+", name)}


@needs_compiler
@pytest.mark.parametrize("flags", [[], ["-DPOLICY_LIBM"]])
@pytest.mark.parametrize("index", [0, 1, 2, 4, 5, 9, 10])
def test_the_self_test_passes_and_finds_a_wrong_weight(index: int, flags: list[str], tmp_path: Path) -> None:
    source = write(c_source(random_policy(index)), tmp_path)

    def run() -> Any:
        build = [
            *compiler(),
            *FLAGS,
            *flags,
            "-DPOLICY_SELF_TEST",
            str(source),
            "-o",
            str(tmp_path / "test"),
            "-lm",
        ]
        subprocess.run(build, check=True)
        return subprocess.run([str(tmp_path / "test")], capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"0 of 1[0-6] actions differ from NumPy's\n", done.stdout)
    text = source.read_text()
    source.write_text(re.sub(r"(policy_bias_0\[\d+\] = \{\n    )[^,\n]+", r"\g<1>9.0f", text))
    if source.read_text() != text:
        assert run().returncode > 0


def test_tanh_keeps_its_error_bounds() -> None:
    x = np.concatenate([np.linspace(-10.0, 10.0, 1_000_001), np.geomspace(1e-44, 10.0, 100_001)]).astype(
        np.float32
    )
    exact = np.tanh(x.astype(np.float64))
    error = np.abs(tanh.tanh(x).astype(np.float64) - exact)
    assert error.max() <= tanh.MAX_ABSOLUTE_ERROR
    normal = np.abs(x) > 1e-36
    assert (error[normal] / np.abs(exact[normal])).max() <= tanh.MAX_RELATIVE_ERROR
    extremes = np.array([np.inf, -np.inf, 1e30, -0.0, 1e-45], np.float32)
    np.testing.assert_array_equal(tanh.tanh(extremes), np.array([1, -1, 1, -0.0, 1e-45], np.float32))


@needs_compiler
def test_tanh_has_the_same_bits_in_c(tmp_path: Path) -> None:
    from prune_rl.export.policy import Policy

    bounds = (-1.0,), (1.0,)
    kernel: Any = np.ones((1, 1), np.float32)
    policy = Policy(((kernel, np.zeros(1, np.float32)),), "relu", Box(*bounds, (1,)), squash=True)
    source = c_source(policy)
    played = CPolicy(policy, source.name, compile_library([source], tmp_path))
    x = np.linspace(-10.0, 10.0, 100_001).astype(np.float32)[:, None]
    np.testing.assert_array_equal(played(x), tanh.tanh(x))


@pytest.mark.parametrize("name", ["", "1st", "a-b", "é", "a b"])
def test_a_name_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a C export must be letters"):
        c_source(random_policy(0), name)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    with pytest.raises(NoCompiler, match="no C compiler no-such-compiler -O2: install one"):
        compiler()


@needs_compiler
def test_code_that_does_not_compile_is_an_error(tmp_path: Path) -> None:
    source = c_source(random_policy(0))
    with pytest.raises(ValueError, match=r"(?s)failed: .*error"):
        compile_library([CSource("policy", source.header, source.source + "int x = ;\n")], tmp_path)


def test_the_header_says_what_the_policy_is_and_cannot_be_broken_by_metadata() -> None:
    header = c_source(random_policy(0), metadata={"robot": "x */ #error\nint y; @z"}).header
    assert " * robot: x * / #error int y; (at)z\n" in header
    assert header.count("*/") == 2
