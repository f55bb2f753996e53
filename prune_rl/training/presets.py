"""Where the presets are, and how one becomes a configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path

import prune_rl
from prune_rl.training.config import Config
from prune_rl.training.structuring import merged


def preset_folder() -> Path:
    """``experiments/presets`` of the checkout that the package lies in, else the copy inside the installed package."""
    package = Path(prune_rl.__file__).parent
    checkout = package.parent / "experiments" / "presets"
    return checkout if checkout.is_dir() else package / "presets"


def find_preset(env: str, algo: str) -> Path | None:
    """The preset of an environment and a learner, or None."""
    path = preset_folder() / f"{env.replace('/', '_').replace(':', '_')}-{algo}.toml"
    return path if path.is_file() else None


def load_preset(path: Path, config: Config) -> Config:
    """``config`` with the fields that the TOML file names; raises ``ValueError`` that names the file and the field."""
    try:
        return merged(config, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"there is no preset {str(path)!r}") from None
    except RecursionError:
        raise ValueError(f"preset {path.name}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"preset {path.name}: {error}") from error
