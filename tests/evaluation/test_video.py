"""Clips: real ones, encoded by FFmpeg and read back; and what is said where there can be none."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest

from prune_rl.envs.errors import UnsupportedEnvironment
from prune_rl.envs.task import resolve_task
from prune_rl.evaluation import video as video
from prune_rl.evaluation import video_encoder
from prune_rl.evaluation.evaluate import episode_seed, evaluate_policy
from prune_rl.evaluation.video import check_video, video_paths, write_video
from prune_rl.evaluation.video_encoder import VideoUnavailable
from prune_rl.export.policy import Policy
from prune_rl.spaces import Box, Discrete
from tests.evaluation.clips import frames_of

FILM = "PruneRlFilm-v0"
GREY = (0, 60, 120, 180, 240)


def constant(size: int, actions: int, action: int) -> Policy:
    layer = np.zeros((size, actions), np.float32), np.eye(actions, dtype=np.float32)[action]
    return Policy((layer,), "tanh", Discrete(actions))


PUSH = constant(4, 2, 1)  # CartPole falls after some ten steps
FALL = constant(8, 4, 0)
HOP = Policy(
    ((np.zeros((11, 3), np.float32), np.full(3, 0.5, np.float32)),),
    "tanh",
    Box((-1.0,) * 3, (1.0,) * 3, (3,)),
)
STAY = constant(1, 2, 0)


def grey(step: int) -> Any:
    return np.full((8, 12, 3), GREY[step], np.uint8)


class Film(gymnasium.Env[Any, Any]):
    """Episodes of four steps, drawn by a function of the step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None, draw: Callable[[int], Any] = grey) -> None:
        self.render_mode, self.draw, self.steps = render_mode, draw, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(1, self.steps, np.float32), 0.25, self.steps == 4, False, {}

    def render(self) -> Any:
        return self.draw(self.steps)


@pytest.fixture
def drawn_by() -> Iterator[Callable[..., None]]:
    """`drawn_by(draw)` registers an environment of the id `FILM`, which that function draws."""

    def register(draw: Callable[[int], Any] = grey, entry_point: type[Film] = Film) -> None:
        gymnasium.registry.pop(FILM, None)
        gymnasium.register(FILM, entry_point=cast(Any, entry_point), kwargs={"draw": draw})

    yield register
    gymnasium.registry.pop(FILM, None)


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a display, on which nobody has chosen how to draw; what a clip chooses is forgotten again."""
    for name in ("SDL_VIDEODRIVER", "MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def first_frame(env_id: str, seed: int) -> np.ndarray[Any, Any]:
    env = resolve_task(env_id).make_gymnasium(render_mode="rgb_array")
    env.reset(seed=episode_seed(seed, 0))
    frame: Any = env.render()
    env.close()
    return np.asarray(frame)


def difference(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    return float(np.abs(left.astype(int) - right).mean())


@pytest.mark.parametrize(("env_id", "policy"), [("CartPole-v1", PUSH), ("LunarLander-v2", FALL)])
def test_a_clip_shows_the_first_episodes_of_the_evaluation(
    env_id: str, policy: Policy, tmp_path: Path
) -> None:
    clip = write_video(policy, env_id, tmp_path / "new" / "clip.mp4", seed=5, episodes=2)
    evaluation = evaluate_policy(policy, env_id, episodes=3, seed=5)
    assert clip.returns == tuple(evaluation.returns[:2])
    assert clip.lengths == tuple(evaluation.lengths[:2])
    assert clip.cut == (False, False)
    assert clip.frames == sum(clip.lengths) + 2, "after each reset, and after each step"
    frames, fps = frames_of(clip.path)
    assert (len(frames), fps) == (clip.frames, clip.fps) == (clip.frames, 50.0)
    assert frames.shape[1:] == (400, 600, 3)
    assert difference(frames[0], first_frame(env_id, 5)) < 2.0
    assert sum(a.tobytes() != b.tobytes() for a, b in itertools.pairwise(frames)) > 0.8 * len(frames), (
        "it moves"
    )
    assert [file.name for file in clip.path.parent.iterdir()] == ["clip.mp4"]


def test_a_gif_plays_at_the_same_speed_with_fewer_frames(tmp_path: Path) -> None:
    clip = write_video(PUSH, "CartPole-v1", tmp_path / "clip.GIF", seed=5, fps=125)
    (length,) = clip.lengths
    assert clip.fps == pytest.approx(125 / 3)
    assert clip.frames == 1 + -(-length // 3), "every third one, and the last"
    frames, fps = frames_of(clip.path)
    assert len(frames) == clip.frames
    assert len(frames) / fps == pytest.approx(clip.frames / clip.fps, abs=0.02), "seconds"
    # Its palette holds every colour of so plain a picture.
    assert difference(frames[0], first_frame("CartPole-v1", 5)) < 1.0


def test_continuous_actions_and_the_rate_of_the_environment(tmp_path: Path) -> None:
    layer = np.full((3, 1), 0.5, np.float32), np.zeros(1, np.float32)
    swing = Policy((layer,), "tanh", Box((-2.0,), (2.0,), (1,)))
    clip = write_video(swing, "Pendulum-v1", tmp_path / "clip.mp4", seed=0)
    assert clip.returns == tuple(evaluate_policy(swing, "Pendulum-v1", episodes=1, seed=0).returns)
    assert (clip.frames, clip.fps) == (201, 30.0)


@pytest.mark.usefixtures("undecided")
def test_mujoco_is_filmed_without_a_display(tmp_path: Path) -> None:
    try:
        clip = write_video(HOP, "Hopper-v3", tmp_path / "clip.mp4", seed=1)
    except VideoUnavailable as error:
        if not str(error).startswith("MuJoCo cannot draw here: there is no display, and neither"):
            raise
        pytest.skip(f"the machine has no OpenGL to draw with: {error}")
    assert os.environ["MUJOCO_GL"] in ("egl", "osmesa")
    assert clip.returns == tuple(evaluate_policy(HOP, "Hopper-v3", episodes=1, seed=1).returns)
    frames, fps = frames_of(clip.path)
    assert clip.frames == 1 + -(-clip.lengths[0] // 3), "every third one, and the last"
    assert len(frames) == clip.frames
    assert fps == pytest.approx(125 / 3, abs=0.01)
    assert frames[0].std() > 20, "not one colour"
    assert difference(frames[0], frames[-1]) > 1.0, "it moves"


@pytest.mark.usefixtures("undecided")
def test_without_an_opengl_mujoco_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "GL_BACKENDS", ("none_such",))
    with pytest.raises(VideoUnavailable, match="apt install libegl1 libgl1-mesa-dri"):
        write_video(HOP, "Hopper-v3", tmp_path / "clip.mp4", seed=1)
    assert "MUJOCO_GL" not in os.environ
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undecided")
def test_no_display_is_needed_and_a_choice_of_ones_own_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_by: Callable[..., None]
) -> None:
    drawn_by()
    write_video(STAY, FILM, tmp_path / "clip.mp4", seed=0)
    assert os.environ.get("SDL_VIDEODRIVER") == ("dummy" if sys.platform == "linux" else None)
    monkeypatch.setenv("SDL_VIDEODRIVER", "mine")
    write_video(STAY, FILM, tmp_path / "clip.mp4", seed=0)
    assert os.environ["SDL_VIDEODRIVER"] == "mine"


@pytest.mark.parametrize("shape", [(8, 12), (7, 13)], ids=["even sides", "odd sides"])
def test_frames_keep_their_order_and_odd_ones_get_a_line(
    shape: tuple[int, int], tmp_path: Path, drawn_by: Callable[..., None]
) -> None:
    drawn_by(lambda step: np.full((*shape, 3), GREY[step], np.uint8))
    clip = write_video(STAY, FILM, tmp_path / "clip.mp4", seed=0, episodes=2)
    assert clip.returns == (1.0, 1.0)
    frames, fps = frames_of(clip.path)
    assert fps == 10.0
    assert frames.shape == (10, 8, shape[1] + shape[1] % 2, 3)
    np.testing.assert_allclose(frames[:, 4, 6].mean(-1), np.tile(GREY, 2), atol=6)


def test_without_a_rate_of_its_own_an_environment_is_shown_at_the_default(
    tmp_path: Path, drawn_by: Callable[..., None]
) -> None:
    class Timeless(Film):
        metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    drawn_by(entry_point=Timeless)
    assert write_video(STAY, FILM, tmp_path / "clip.mp4", seed=0).fps == video.DEFAULT_FPS
    assert write_video(STAY, FILM, tmp_path / "clip.mp4", seed=0, fps=7.5).fps == 7.5
    assert frames_of(tmp_path / "clip.mp4")[1] == 7.5


def test_a_long_episode_is_cut(tmp_path: Path) -> None:
    clip = write_video(PUSH, "CartPole-v1", tmp_path / "clip.gif", seed=5, episodes=2, max_steps=3)
    assert (clip.lengths, clip.returns, clip.cut) == ((3, 3), (3.0, 3.0), (True, True))
    assert clip.frames == 8


def broken(step: int) -> Any:
    raise RuntimeError("the\n canvas is torn")


def missing(step: int) -> Any:
    import none_such  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda step: np.zeros((8, 8 + 2 * (step > 2), 3), np.uint8), r"change their shape, from \(8, 8, 3\)"),
        (lambda step: np.zeros((8, 8, 3)), r"not draw images uint8\[height, width, 3\], but float64\[8, 8, 3\]"),
        (lambda step: np.zeros((8, 8), np.uint8), r"but uint8\[8, 8\]"),
        (lambda step: "a picture", "but str"),
        (lambda step: grey(step) if step < 4 else None, "but NoneType"),
        (broken, "PruneRlFilm-v0 could not be drawn: the canvas is torn"),
        (missing, r"a package that draws .*'none_such'.*: pip install 'prune_rl\[video\]'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_what_cannot_be_drawn_leaves_the_older_file(
    draw: Any, message: str, suffix: str, tmp_path: Path, drawn_by: Callable[..., None]
) -> None:
    drawn_by(draw)
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"an older one")
    with pytest.raises(VideoUnavailable, match=message) as caught:
        write_video(STAY, FILM, path, seed=0)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_policy_leaves_the_older_file(tmp_path: Path, drawn_by: Callable[..., None]) -> None:
    drawn_by()
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an older one")
    calls = itertools.count()
    for act, message in (
        (lambda obs: np.zeros(1 + (next(calls) > 1), int), r"one observation of PruneRlFilm-v0.*\(1,\), got \(2,\)"),
        (lambda obs: np.full(1, 2), "must be in 0 … 1"),
        (lambda obs: np.ones(1), "must be integers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            write_video(act, FILM, path, seed=0)
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("options", ["-c:v none_such -f mp4", "-vf crop=9999:9999 -f mp4"])
def test_a_failing_encoder_says_why_and_leaves_the_older_file(
    options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_by: Callable[..., None]
) -> None:
    # Frames that do not fit a pipe's buffer: some are still to be written when it ends.
    drawn_by(lambda step: np.zeros((400, 400, 3), np.uint8))
    monkeypatch.setitem(video_encoder.FORMATS, ".mp4", video_encoder.Format(options))
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an older one")
    with pytest.raises(OSError, match=r"^FFmpeg could not write the video: .+") as caught:
        write_video(STAY, FILM, path, seed=0)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"an older one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["clip.avi", "clip", "clip.mp4.txt", ".mp4", "clip.mp"])
def test_an_unknown_suffix_is_refused(name: str, tmp_path: Path) -> None:
    for refuse in (check_video, lambda path: write_video(PUSH, "CartPole-v1", path, seed=0)):
        with pytest.raises(ValueError, match=r"give it the suffix .mp4 or .gif"):
            refuse(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.gif").mkdir()
    for refuse in (check_video, lambda path: write_video(PUSH, "CartPole-v1", path, seed=0)):
        with pytest.raises(ValueError, match=r"clip\.gif, which is a folder; name a file"):
            refuse(tmp_path / "clip.gif")


def test_a_missing_encoder_is_named_with_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for refuse in (check_video, lambda path: write_video(PUSH, "CartPole-v1", path, seed=0)):
        with pytest.raises(VideoUnavailable, match=r"imageio-ffmpeg .* pip install 'prune_rl\[video\]'"):
            refuse(tmp_path / "clip.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_pygame_is_named_with_the_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(VideoUnavailable, match=r"CartPole-v1 .*pygame.* pip install 'prune_rl\[video\]'"):
        write_video(PUSH, "CartPole-v1", tmp_path / "clip.mp4", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_an_environment_that_draws_no_images_is_refused(
    tmp_path: Path, drawn_by: Callable[..., None]
) -> None:
    class Blind(Film):
        metadata = {"render_modes": ["human"]}  # noqa: RUF012

    drawn_by(entry_point=Blind)
    with pytest.raises(VideoUnavailable, match=r"'rgb_array', and its render modes are \['human'\]"):
        write_video(STAY, FILM, tmp_path / "clip.mp4", seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"episodes": 0}, "at least 1, got 0"),
        ({"max_steps": 0}, "at least 1, got 1 and 0"),
        ({"fps": 0.0}, "fps must be from 0.01 to 1000"),
        ({"fps": float("nan")}, "fps must be from 0.01 to 1000"),
        ({"seed": -1}, "must be 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(PUSH, "CartPole-v1", tmp_path / "clip.mp4", **{"seed": 0, **numbers})
    with pytest.raises(UnsupportedEnvironment, match="did you mean 'CartPole-v1'"):
        write_video(PUSH, "Cartpole-v1", tmp_path / "clip.mp4", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_several_seeds_have_their_own_files() -> None:
    assert video_paths(Path("a/video.mp4"), [3]) == {3: Path("a/video.mp4")}
    assert video_paths(Path("a/clip.gif"), [3, 4]) == {
        3: Path("a/clip/seed_3.gif"),
        4: Path("a/clip/seed_4.gif"),
    }
