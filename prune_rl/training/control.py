"""The dense run beside a run: its configuration and the command that trains it."""

from __future__ import annotations

import dataclasses
import shlex
from typing import get_args

from prune_rl.methods.registry import METHODS
from prune_rl.training.config import Config
from prune_rl.training.export_run import To


def control_of(config: Config) -> Config:
    """The dense run that a run is compared with: the same but for the method. ``config`` must be resolved."""
    return dataclasses.replace(config, method="dense", learner=METHODS[config.method].control(config.learner))


def control_command(config: Config, command: str) -> str:
    """The command that trains the dense control of the run that ``command`` trains, in a folder of its own."""
    control, words, kept = control_of(config), shlex.split(command), list[str]()
    widths = [] if control.learner.hidden == config.learner.hidden else list(control.learner.hidden)
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if name in ("--run-dir", "--method", "--like", "--extend"):
            if not value:
                words.pop(0)
        elif name == "--export":
            while words and words[0] in get_args(To):
                words.pop(0)
        elif widths and name in ("--hidden", "--critic-hidden"):
            while words and (words[0].isdecimal() or words[0] == "None"):
                words.pop(0)
        elif name not in ("--control", "--no-control"):
            kept.append(word)
    return shlex.join([*kept, *(["--hidden", *map(str, widths)] if widths else []), "--method", "dense"])
