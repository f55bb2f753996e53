"""What `--sweep` asks for: fields of the learner with several values each, and the runs of their product."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from prune_rl.learners.pruning_config import Pruning
from prune_rl.training.config import Config
from prune_rl.training.members import name_of, share_program
from prune_rl.training.structuring import merged

# How a field is called on the command line, where that differs.
ALIASES = {"steps": "total_timesteps"}
EXAMPLE = "such as --sweep learning_rate=1e-4,1e-3"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One swept field: its name in the learner's configuration, "prune.strength" for those of pruning, and values."""

    field: str
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class SweptRun:
    """One run of a sweep: ``values``, {field: value}, and its configuration; ``name`` is that of its folder."""

    values: Mapping[str, Any]
    config: Config

    @property
    def name(self) -> str:
        """The values as one word; "seeds" where nothing but the seeds differs."""
        return name_of(self.values) or "seeds"


def read_axes(words: Sequence[str], config: Config) -> tuple[Axis, ...]:
    """The axes of words like "learning_rate=1e-4,1e-3"; widths of layers are joined by x, "hidden=64x64,128x128".

    Raises:
        ValueError: an unknown field, a value of another type than the field's, or something given twice.
    """
    axes: list[Axis] = []
    for word in words:
        name, equals, texts = word.partition("=")
        field = name.replace("-", "_").removeprefix("learner.")
        field = ALIASES.get(field, field)
        if not equals or not field or not all(texts.split(",")):
            raise ValueError(
                f"--sweep takes FIELD=VALUE,VALUE,… ({EXAMPLE[len('such as ') :]}), got {word!r}"
            )
        if field in {axis.field for axis in axes}:
            raise ValueError(f"--sweep names {field} twice: give all its values at once, {EXAMPLE}")
        if field in {each.name for each in dataclasses.fields(Config)}:
            raise ValueError(
                f"--sweep takes hyperparameters of the learner, {EXAMPLE}, and {field!r} is none"
            )
        values = []
        for text in texts.split(","):
            value = _read(field, text, config)
            if value in values:
                raise ValueError(f"--sweep {word} has the value {text} twice")
            values.append(value)
        axes.append(Axis(field, tuple(values)))
    return tuple(axes)


def swept_runs(config: Config, axes: Sequence[Axis]) -> list[SweptRun]:
    """The runs of the product of all axes, not resolved; the last axis changes fastest."""
    runs = []
    for values in itertools.product(*(axis.values for axis in axes)):
        chosen = {axis.field: value for axis, value in zip(axes, values, strict=True)}
        changed = config
        for field, value in chosen.items():
            changed = _with(changed, field, value)
        runs.append(SweptRun(chosen, changed))
    return runs


def check_effect(run: SweptRun) -> None:
    """Raise ``ValueError`` if the resolved run does not have its values, since its method sets them itself."""
    for field, value in run.values.items():
        owner: Any = run.config.learner
        *path, name = field.split(".")
        for part in path:
            owner = getattr(owner, part)
        # Steps are rounded up to whole rollouts.
        if owner is None or (field != "total_timesteps" and getattr(owner, name) != value):
            raise ValueError(
                f"--sweep {field}={value} would change nothing with method {run.config.method!r}: leave it out, or "
                "choose another --method"
            )


def by_program(runs: Sequence[SweptRun]) -> list[list[SweptRun]]:
    """Resolved runs in groups that train in one program each, in order of their first."""
    groups: list[list[SweptRun]] = []
    for run in runs:
        mine = next((group for group in groups if share_program(group[0].config, run.config)), None)
        if mine is None:
            groups.append([run])
        else:
            mine.append(run)
    return groups


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """The words of a command line that gives these values to a single run."""
    names = {field: alias for alias, field in ALIASES.items()}
    words = []
    for field, value in values.items():
        several = isinstance(value, tuple)
        if isinstance(value, bool):
            *path, name = names.get(field, field).split(".")
            words.append("--" + ".".join([*path, name if value else f"no-{name}"]).replace("_", "-"))
            continue
        words += [f"--{names.get(field, field).replace('_', '-')}", *map(str, value if several else [value])]
    return words


def _read(field: str, text: str, config: Config) -> Any:
    """The value of a field from the text of one; checked by the types of the configuration."""
    try:
        changed = _with(config, field, _plain(field, text, config))
    except ValueError as error:
        raise ValueError(f"--sweep {field}={text}: {str(error).replace('learner.', '')}") from None
    owner: Any = changed.learner
    for part in field.split("."):
        owner = getattr(owner, part)
    return owner


def _with(config: Config, field: str, value: Any) -> Config:
    data: Any = value
    for part in reversed(field.split(".")):
        data = {part: data}
    return merged(config, {"learner": data})


def _plain(field: str, text: str, config: Config) -> Any:
    """JSON data that the text stands for, as far as the field's type says."""
    if text == "None":
        return None
    if text in ("true", "True", "false", "False"):
        return text in ("true", "True")
    hints = get_type_hints(Pruning if field.startswith("prune.") else type(config.learner))
    hint = hints.get(field.removeprefix("prune."))
    if any(getattr(each, "__origin__", None) is tuple for each in (hint, *get_args(hint))):
        return [_number(part) for part in text.split("x")]
    value = _number(text)
    whole = int in (hint, *get_args(hint)) and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value  # 1e6


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
