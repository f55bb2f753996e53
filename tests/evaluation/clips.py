"""Clips read back, as a player would."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import imageio.v2
import numpy as np


def frames_of(path: str | Path) -> tuple[np.ndarray[Any, Any], float]:
    """All frames of an MP4 or a GIF, uint8[frames, height, width, 3], and frames per second."""
    with warnings.catch_warnings():
        # imageio-ffmpeg leaves its pipes open, and forks its decoder, which JAX does not like to see.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        with imageio.v2.get_reader(path) as reader:
            frames = np.stack([frame[..., :3] for frame in reader])
            if Path(path).suffix.lower() == ".mp4":
                return frames, reader.get_meta_data()["fps"]
            milliseconds = [reader.get_meta_data(i)["duration"] for i in range(len(frames))]
            return frames, 1000 / float(np.mean(milliseconds))
