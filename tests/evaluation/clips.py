"""Videos read back, as a player would."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageSequence


def frames_of(path: str | Path) -> tuple[np.ndarray[Any, Any], float]:
    """All frames of an MP4 or a GIF, uint8[frames, height, width, 3], and frames per second."""
    if Path(path).suffix.lower() == ".gif":
        with Image.open(path) as image:
            shown = [
                (np.asarray(frame.convert("RGB")), frame.info["duration"])
                for frame in ImageSequence.Iterator(image)
            ]
        frames, milliseconds = zip(*shown, strict=True)
        return np.stack(frames), 1000 / float(np.mean(milliseconds))
    with warnings.catch_warnings():
        # imageio-ffmpeg leaves its pipes open, and forks its decoder, which JAX warns of.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        with contextlib.closing(imageio_ffmpeg.read_frames(str(path))) as reader:
            meta = next(reader)
            width, height = meta["size"]
            decoded = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
        count, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert count == len(decoded)
    return np.stack(decoded), meta["fps"]
