"""Encoding of frames into a video file with FFmpeg, one frame at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]

INSTALL = "pip install 'prune_rl[video]'"


class VideoUnavailable(ValueError):
    """The environment cannot be drawn, or a package or library is missing; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        options: FFmpeg's output options.
        max_fps: the highest frame rate that its players, or a screen, can show.
    """

    options: str
    max_fps: float = 60.0


FORMATS = {
    # Many players support only yuv420p, which needs even sides: odd ones are padded with a black line.
    ".mp4": Format(
        "-vf pad=ceil(iw/2)*2:ceil(ih/2)*2 -c:v libx264 -pix_fmt yuv420p -crf 20 -movflags +faststart -f mp4"
    ),
    # One palette per frame: a common palette would need all frames in memory. Frame times are whole hundredths of a
    # second, and players slow down frames that last less than two.
    ".gif": Format(
        "-vf split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1:dither=none -loop 0 -f gif",
        max_fps=50,
    ),
}


def ffmpeg() -> str:
    """Path of the FFmpeg executable.

    Raises:
        VideoUnavailable: imageio-ffmpeg is not installed, or has no executable for this platform.
    """
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except ImportError as error:
        raise VideoUnavailable(
            f"the package imageio-ffmpeg writes videos, and is missing; install it with: {INSTALL}"
        ) from error
    except RuntimeError as error:
        raise VideoUnavailable(f"there is no FFmpeg to write videos with: {error}") from error


@contextlib.contextmanager
def encoder(
    path: Path, shape: tuple[int, ...], rate: Fraction, style: Format
) -> Iterator[Callable[[Frame], None]]:
    """Context manager of a function that appends a frame to the file; the file is complete when the block ends.

    FFmpeg is run directly because imageio-ffmpeg's own writer ignores its exit status.

    Args:
        path: the file to write.
        shape: (height, width, 3) of every frame, uint8.
        rate: frames per second.
        style: the file format.

    Raises:
        VideoUnavailable: a frame has another shape.
        OSError: FFmpeg failed; the message is its last line of output.
    """
    height, width, _ = shape
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "-")
    command = (ffmpeg(), "-v", "error", *source, "-an", *style.options.split(), "-y", str(path))
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log) as process,
    ):
        assert process.stdin is not None
        pipe = process.stdin

        def failure() -> OSError:
            status = process.wait()
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
            return OSError(f"FFmpeg could not write the video: {said[-1]}")

        def write(frame: Frame) -> None:
            if frame.shape != shape:
                raise VideoUnavailable(f"the frames change their shape, from {shape} to {frame.shape}")
            try:
                pipe.write(np.ascontiguousarray(frame).data)
            except BrokenPipeError:  # FFmpeg has exited
                raise failure() from None

        try:
            yield write
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
            if process.wait():
                raise failure()
        except BaseException:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
            raise
