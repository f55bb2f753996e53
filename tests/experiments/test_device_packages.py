"""What `make device` says on a machine that lacks its packages."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.device.__main__ import main
from experiments.device.cortex_m4_emulator import missing


def test_each_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["device"])
    assert missing() == ["arm-none-eabi-gcc", "qemu-system-arm"]
    with pytest.raises(SystemExit, match="error: arm-none-eabi-gcc, qemu-system-arm not installed"):
        main()


@pytest.mark.parametrize(
    ("answer", "absent"), [("rdimon.specs", ["newlib for arm-none-eabi"]), ("/lib/rdimon.specs", [])]
)
def test_a_compiler_without_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, absent: list[str]
) -> None:
    for name in ("arm-none-eabi-gcc", "qemu-system-arm"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing() == absent
