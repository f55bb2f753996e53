"""Videos of the first episodes of a policy's evaluation, rendered by the environment without a display."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from prune_rl.atomic_files import write_bytes
from prune_rl.envs.gymnasium_adapter import Adapter, FlatEnv
from prune_rl.envs.task import Task, resolve_task
from prune_rl.evaluation.evaluate import episode_seed, native_actions
from prune_rl.evaluation.video_encoder import FORMATS, INSTALL, Frame, VideoUnavailable, encoder, ffmpeg

MAX_STEPS = 10_000  # per episode: an environment without an end must not fill the disk
DEFAULT_FPS = 30  # for environments without "render_fps"
GL_BACKENDS = ("egl", "osmesa")  # MuJoCo's renderers that need no display; the first may use a GPU
GL_TIMEOUT = 300.0  # s; a trial takes about 1 s on an idle machine


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file that was written.

    Attributes:
        path: the file.
        frames: number of frames.
        fps: frames per second.
        returns: undiscounted return of each episode shown.
        lengths: steps of each episode shown.
        cut: per episode, whether it was cut at `max_steps`; its return then is the one up to that step.
    """

    path: Path
    frames: int
    fps: float
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    cut: tuple[bool, ...]


def write_video(
    policy: Callable[[npt.NDArray[np.float32]], npt.ArrayLike],
    env: str | Task,
    path: str | os.PathLike[str],
    *,
    seed: int,
    episodes: int = 1,
    max_steps: int | None = None,
    fps: float | None = None,
) -> Clip:
    """Play the first episodes of `evaluate_policy(policy, env, seed=seed)` and write what they look like.

    A frame is rendered after each reset and each step, unless that exceeds the frame rate that can be shown (see
    `fps`). Frames are encoded one by one, and the finished file is renamed to `path`: a failure leaves an existing file
    unchanged. No display is needed. Without one, `SDL_VIDEODRIVER` (pygame) and `MUJOCO_GL` (MuJoCo) are set for this
    process, unless they are already set.

    Args:
        policy: observations float32[1, D] to actions, int[1] or float[1, *shape]. The returns are those of the
            evaluation if the action does not depend on the rest of a batch, as that of a `prune_rl.export.Policy`.
        env: as in `evaluate_policy`, if the environment draws "rgb_array".
        path: its suffix says the format, ".mp4" (H.264) or ".gif"; its folder is made if it is missing.
        seed: of the evaluation, 0 or more.
        episodes: how many, one after the other.
        max_steps: length at which an episode is cut; by default 10,000.
        fps: environment steps per second; by default the environment's own rate, real time. Above 60 (GIF: 50) the
            video keeps that speed, but has only every second, third, … frame and the last one of each episode.

    Raises:
        ValueError: an unknown suffix, a number out of range, an unsupported environment, or wrong actions as in
            `evaluate_policy`.
        VideoUnavailable: a package or an OpenGL library is missing, or the environment draws no images.
        OSError: the file cannot be written.
    """
    path = Path(path)
    check_video(path)
    style = FORMATS[path.suffix.lower()]
    if episodes < 1 or (max_steps is not None and max_steps < 1):
        raise ValueError(f"episodes and max_steps must be at least 1, got {episodes} and {max_steps}")
    if fps is not None and not 0.01 <= fps <= 1000.0:
        raise ValueError(f"fps must be from 0.01 to 1000 frames per second, got {fps}")
    seeds = [episode_seed(seed, episode) for episode in range(episodes)]
    task = resolve_task(env) if isinstance(env, str) else env
    drawn = _make(task)
    try:
        rate = fps or float(drawn.metadata.get("render_fps") or DEFAULT_FPS)
        every = max(1, math.ceil(rate / style.max_fps))
        shown = Fraction(rate).limit_denominator(1000) / every
        adapter = Adapter.of(drawn, task.env_id)
        film = _Film(FlatEnv(drawn, adapter), task.env_id, adapter, policy, max_steps or MAX_STEPS, every)
        frames = film.frames(seeds)
        first = next(frames)
        with tempfile.TemporaryDirectory(prefix="prune_rl-") as folder:
            encoded = Path(folder) / "clip"
            with encoder(encoded, first.shape, shown, style) as write:
                write(first)
                for frame in frames:
                    write(frame)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, encoded.read_bytes())
    finally:
        drawn.close()
    return Clip(path, film.count, float(shown), tuple(film.returns), tuple(film.lengths), tuple(film.cut))


def check_video(path: str | os.PathLike[str]) -> None:
    """Check, before any episode is run, that `write_video` can write `path` on this machine.

    Raises:
        ValueError: the suffix of `path` is not a known format, or `path` is a directory.
        VideoUnavailable: the encoder is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"a video cannot be written to {str(path)!r}, whose suffix is {path.suffix!r}; "
            f"give it the suffix {' or '.join(FORMATS)}"
        )
    if path.is_dir():
        raise ValueError(f"a video cannot be written to {path}, which is a folder; name a file")
    ffmpeg()


def video_paths(path: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """File of each seed: `path` itself, or for several seeds `video/seed_K.mp4` instead of `video.mp4`."""
    if len(seeds) == 1:
        return {seeds[0]: path}
    return {seed: path.with_suffix("") / f"seed_{seed}{path.suffix}" for seed in seeds}


@dataclasses.dataclass
class _Film:
    """Runs episodes and renders them; the lists are those of `Clip` and grow with every episode."""

    env: FlatEnv
    env_id: str
    adapter: Adapter
    policy: Callable[[npt.NDArray[np.float32]], npt.ArrayLike]
    max_steps: int
    every: int
    count: int = 0
    returns: list[float] = dataclasses.field(default_factory=list)
    lengths: list[int] = dataclasses.field(default_factory=list)
    cut: list[bool] = dataclasses.field(default_factory=list)

    def frames(self, seeds: Sequence[int]) -> Iterator[Frame]:
        """Every `every`-th frame, and the last one, of one episode per seed."""
        for seed in seeds:
            obs, _ = self.env.reset(seed=seed)
            total, steps, over = 0.0, 0, False
            yield self._drawn()
            while not over and steps < self.max_steps:
                obs, reward, terminated, truncated, _ = self.env.step(self._action(obs))
                total += reward
                steps += 1
                over = terminated or truncated
                if steps % self.every == 0 or over or steps == self.max_steps:
                    yield self._drawn()
            self.returns.append(total)
            self.lengths.append(steps)
            self.cut.append(not over)

    def _action(self, obs: npt.NDArray[np.float32]) -> Any:
        """The policy's action, as the environment takes it."""
        return native_actions(self.policy, obs[None], self.adapter, self.env_id)[0]

    def _drawn(self) -> Frame:
        try:
            frame: Any = self.env.render()
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise VideoUnavailable(
                f"a package that draws {self.env_id} is missing ({error}); install it with: {INSTALL}"
            ) from error
        except Exception as error:  # graphics libraries raise many types
            said = " ".join(str(error).split()) or type(error).__name__
            raise VideoUnavailable(f"{self.env_id} could not be drawn: {said}") from error
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.shape[2:] != (3,):
            raise VideoUnavailable(
                f"{self.env_id} does not draw images uint8[height, width, 3], but {_described(frame)}"
            )
        self.count += 1
        return frame


def _described(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _make(task: Task) -> gymnasium.Env[Any, Any]:
    """The environment, ready to draw."""
    if _no_display():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    bare = task.make_gymnasium()
    modes = list(bare.metadata.get("render_modes") or [])
    bare.close()
    if "rgb_array" not in modes:
        raise VideoUnavailable(
            f"{task.env_id} draws no images: it would need the render mode 'rgb_array', "
            f"and its render modes are {modes}"
        )
    if any(base.__module__.startswith("gymnasium.envs.mujoco.") for base in type(bare.unwrapped).__mro__):
        _choose_gl()
    return task.make_gymnasium(render_mode="rgb_array")


def _no_display() -> bool:
    return sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _choose_gl() -> None:
    """Set `MUJOCO_GL` to the first OpenGL backend that works on this machine.

    Gymnasium tries them in one process, where a failed attempt with the first breaks the second. Here each is tried in
    a separate process.
    """
    if "MUJOCO_GL" in os.environ or not _no_display():
        return
    for backend in GL_BACKENDS:
        trial = f"from mujoco.{backend} import GLContext; c = GLContext(8, 8); c.make_current(); c.free()"
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run([sys.executable, "-c", trial], capture_output=True, timeout=GL_TIMEOUT)
            if done.returncode == 0:
                os.environ["MUJOCO_GL"] = backend
                return
    raise VideoUnavailable(
        "MuJoCo cannot draw here: there is no display, and neither EGL nor OSMesa works; "
        "install one, on Debian and Ubuntu with: apt install libegl1 libgl1-mesa-dri (or: apt install libosmesa6)"
    )
