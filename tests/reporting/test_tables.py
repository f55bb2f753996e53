from __future__ import annotations

import itertools

from prune_rl.reporting.statistics import Difference
from prune_rl.reporting.tables import (
    difference_text,
    number,
    removed,
    return_text,
    signed,
    span,
    table,
    widths_text,
)


def test_numbers() -> None:
    assert [signed(value) for value in (1.26, -0.04, 0.0, 0.04, -3.0)] == [
        "+1.3",
        "0.0",
        "0.0",
        "0.0",
        "-3.0",
    ]
    assert [number(value) for value in (67072, 14.5, float("nan"))] == ["67,072", "14.5", "?"]
    assert span(2000, 2000) == "2,000"
    assert span(7, 1100) == "7–1,100"
    assert removed({"kept": 1, "total": 4}) == 0.75
    assert removed({"kept": 0, "total": 0}) == 0.0
    assert difference_text(Difference(-1.94, (-11.4, 7.62), 3, "seeds")) == "-1.9 [-11.4, +7.6]"


def test_texts_of_policies() -> None:
    one, other = {"widths": [7, 8], "returns": [1.0, 3.0]}, {"widths": [7, 11], "returns": [4.0, 8.0]}
    assert widths_text([one]) == "7·8"
    assert widths_text([one, other]) == "7·8–11"
    assert return_text([one]) == "2.0 ± 1.4"
    assert return_text([one, other]) == "4.0 ± 2.8"  # of the means 2 and 6
    assert return_text([{"returns": [5.0]}]) == "5.0 ± 0.0"


def test_table_lines_up() -> None:
    text = table(
        ["run", "method", "return"], [["a|b", "dense", "1.0"], ["c", "dynamic", "100.0"]], text_columns=2
    )
    lines = text.splitlines()
    assert lines == [
        "| run  | method  | return |",
        "| ---- | ------- | -----: |",
        "| a\\|b | dense   |    1.0 |",
        "| c    | dynamic |  100.0 |",
    ]
    assert all(len(left) == len(right) for left, right in itertools.pairwise(lines))
