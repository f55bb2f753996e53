"""What docs/architectures.md says of kinds of architectures, on those that no other test has."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.architectures.kinds import KINDS, row

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.mark.parametrize(
    "kind",
    ["ResNeXt, RegNet (channels of every group)", "MNASNet, MobileNet v2", "ShuffleNet v2", "RAFT", "Llama"],
)
def test_the_compacted_function_is_the_masked_one(kind: str) -> None:
    found = row(kind)
    (line,) = (line for line in PAGE.read_text().splitlines() if line.startswith(f"| {kind} |"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    left = found["weights left"]
    assert found["error"] < 1e-5
    assert cells[:4] == [
        found["theirs"],
        str(found["groups"]),
        str(found["neurons"]),
        f"{100 * left.kept / left.total:.0f} %",
    ]


def test_every_kind_is_on_the_page() -> None:
    lines = PAGE.read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:] == list(KINDS)
