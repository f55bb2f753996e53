"""The examples in docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import prune_rl

MODULES = [module.name for module in pkgutil.walk_packages(prune_rl.__path__, "prune_rl.")]


def with_examples(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        return ">>>" in file.read()


@pytest.mark.parametrize("name", [name for name in MODULES if with_examples(name)])
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
