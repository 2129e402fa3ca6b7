"""One synthetic audio-visual segmentation clip: which of the visible things is heard?

AVSBench may not be shipped, so training, tests, the demo and the docs use clips of our own that ask the same question.
Eight categories (names of AVSBench-semantic) each have a look and a timbre. In every clip some objects sound and
others of the same eight categories only move about, so the picture alone cannot tell which pixels to segment. The
three kinds follow the three subsets: "s4" (one steady source, train labels on the first frame only), "ms3" (up to two
sources that start and stop at second boundaries) and "avss" (as ms3, class labels, 5 or 10 frames).

A clip is a function of (kind, seed, split, index), and of nothing else: neither the size nor other clips change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from combo_hf.data.row_format import SAMPLING_RATE
from combo_hf.data.subsets import SPLITS
from combo_hf.data.synthetic.scenes import (
    BACKGROUND_MARGIN,
    BUILDS,
    Item,
    Motion,
    Scene,
    render_background,
    render_sprite,
)
from combo_hf.data.synthetic.sounds import SOUNDS, mix_sources
from combo_hf.media_combo import FRAME_OFFSET


CATEGORIES: tuple[str, ...] = tuple(sorted(SOUNDS))  # class k + 1 of the masks is CATEGORIES[k]; 0 is background
ID2LABEL: dict[int, str] = dict(enumerate(("background", *CATEGORIES)))


@dataclass(frozen=True)
class KindRule:
    """What tells the kinds apart. Ranges are inclusive."""

    num_frames: tuple[int, ...]
    sources: tuple[int, int]
    silent: tuple[int, int]
    steady: float  # share of clips in which every source sounds all the time
    semantic: bool  # rows carry class indices rather than 0 and 1
    first_frame_only: bool  # in the train split


KINDS: Mapping[str, KindRule] = {
    "s4": KindRule((5,), (1, 1), (1, 2), 1.0, False, True),
    "ms3": KindRule((5,), (1, 2), (1, 2), 0.1, False, False),
    "avss": KindRule((5, 10), (1, 2), (1, 2), 0.3, True, False),
}


@dataclass
class SyntheticClip:
    """One clip with its ground truth. T seconds, one frame and one mask per second.

    Attributes:
        frames: T RGB images at t = k + 15/16 s.
        masks: T uint8 arrays (H, W) of class indices 0..8: the visible part of what sounds in that second.
        label_frames: T flags; in the train split of "s4" only the first frame counts as labelled.
        waveform: float32 (T * 16000,), mono.
        sounding: the categories that sound, for each second.
        silent: categories that are visible and never sound.
    """

    video_id: str
    kind: str
    split: str
    frames: list[Image.Image]
    masks: list[np.ndarray]
    label_frames: list[bool]
    waveform: np.ndarray
    sounding: list[list[str]]
    silent: list[str]
    scene: Scene = field(repr=False)
    sampling_rate: int = SAMPLING_RATE

    def render_video(self, fps: float = 25) -> Iterator[Image.Image]:
        """Draw the whole clip at `fps` frames per second, one RGB image after the other.

        Raises:
            ValueError: `fps` is not positive.
        """
        if fps <= 0:
            raise ValueError(f"fps must be positive, got {fps}")
        for number in range(round(len(self.frames) * fps)):
            yield self.scene.render(number / fps)[0]


@dataclass(frozen=True)
class ClipPlan:
    """Who appears and who sounds when, before anything is drawn: `schedules[category]` has one flag per second."""

    video_id: str
    num_frames: int
    schedules: dict[str, tuple[bool, ...]]

    @property
    def sounding(self) -> list[list[str]]:
        return [[name for name, on in self.schedules.items() if on[second]] for second in range(self.num_frames)]

    @property
    def silent(self) -> list[str]:
        return [name for name, on in self.schedules.items() if not any(on)]


def _check(kind: str, seed: int, index: int, split: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; use one of {sorted(KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {list(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed={seed}, index={index}")


def _streams(kind: str, seed: int, index: int, split: str) -> list[np.random.SeedSequence]:
    """Independent random streams of one clip: plan, layout, background, room noise, objects."""
    entropy = [seed, list(KINDS).index(kind), SPLITS.index(split), index]
    return np.random.SeedSequence(entropy).spawn(5)


def _schedule(rng: np.random.Generator, seconds: int, steady: bool) -> tuple[bool, ...]:
    """Draw when a source sounds: it tends to go on as it is, and sounds for one second at least."""
    if steady:
        return (True,) * seconds
    on = [bool(rng.random() < 0.65)]
    for _ in range(seconds - 1):
        on.append(bool(rng.random() < (0.75 if on[-1] else 0.5)))
    if not any(on):
        on[rng.integers(seconds)] = True
    return tuple(on)


def plan_clip(kind: str, seed: int, index: int, split: str = "train", num_frames: int | None = None) -> ClipPlan:
    """Decide who appears in a clip and who sounds when; costs next to nothing. See [`synthesize_clip`]."""
    _check(kind, seed, index, split)
    rule, rng = KINDS[kind], np.random.default_rng(_streams(kind, seed, index, split)[0])
    drawn = int(rng.choice(rule.num_frames))
    seconds = drawn if num_frames is None else num_frames
    if seconds < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    num_sources = int(rng.integers(rule.sources[0], rule.sources[1] + 1))
    num_silent = int(rng.integers(rule.silent[0], rule.silent[1] + 1))
    names = [CATEGORIES[k] for k in rng.permutation(len(CATEGORIES))[: num_sources + num_silent]]
    steady = bool(rng.random() < rule.steady)
    schedules = {name: _schedule(rng, seconds, steady) for name in names[:num_sources]}
    schedules |= {name: (False,) * seconds for name in names[num_sources:]}
    return ClipPlan(f"synthetic_{kind}_{split}_{seed}_{index:06d}", seconds, schedules)


def _place(rng: np.random.Generator, radius: float, tilt: float, others: list[tuple[Motion, float]]) -> Motion:
    """Draw paths until one keeps clear enough of the others (partial overlap is welcome), or take the best of 32."""
    times, paths = np.arange(0, 10.5, 0.5), []
    for _ in range(32):
        motion = Motion.draw(rng, radius, tilt)
        path = motion.position(times)
        gaps = [np.linalg.norm(path - m.position(times), axis=1).min() / (radius + r) for m, r in others]
        paths.append((min(gaps, default=1.0), motion))
        if paths[-1][0] > 0.85:
            break
    return max(paths, key=lambda path: path[0])[1]


def _build_scene(plan: ClipPlan, streams: Sequence[np.random.SeedSequence], size: int) -> Scene:
    """Draw the plan: objects look, move and overlap the same whether they sound or not."""
    rng = np.random.default_rng(streams[1])
    names = sorted(plan.schedules)
    crowd = 1.0 if len(names) <= 2 else 0.92 if len(names) == 3 else 0.84
    things = [str(name) for name in rng.permutation(names)] + ["clutter"] * int(rng.integers(2, 5))
    placed: list[tuple[Motion, float]] = []
    items: list[Item] = []
    for name, own in zip(things, streams[4].spawn(len(things)), strict=True):
        relative, tilt = BUILDS[name]
        diameter = rng.uniform(0.36, 0.48) * relative * crowd
        motion = _place(rng, diameter / 2, tilt, [] if name == "clutter" else placed)
        sprite = render_sprite(name, np.random.default_rng(own), max(8, round(diameter * size)))
        item = Item(name, sprite, motion, flip=bool(rng.random() < 0.5))
        if name == "clutter" and rng.random() < 0.92:  # clutter in front hides things, so it stays rare
            items.insert(0, item)
        else:
            items.append(item)
        placed += [] if name == "clutter" else [(motion, diameter / 2)]
    background = render_background(np.random.default_rng(streams[2]), round(size * (1 + BACKGROUND_MARGIN)))
    return Scene(size, background, tuple(rng.uniform(0, 6, 2)), items)


def synthesize_clip(
    kind: str, seed: int, index: int, split: str = "train", size: int = 224, num_frames: int | None = None
) -> SyntheticClip:
    """Make one clip.

    Args:
        kind (`str`): "s4", "ms3" or "avss".
        seed (`int`): seed of the data set, at least 0.
        index (`int`): number of the clip in its split, at least 0.
        split (`str`, defaults to `"train"`): "train", "val" or "test"; splits share no clip.
        size (`int`, defaults to 224): height and width in pixels, at least 32.
        num_frames (`int`, *optional*): length in seconds; by default 5, and 5 or 10 for "avss".

    Returns:
        [`SyntheticClip`]

    Raises:
        ValueError: an unknown kind or split, or a number out of range.
    """
    plan = plan_clip(kind, seed, index, split, num_frames)
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    streams = _streams(kind, seed, index, split)
    scene = _build_scene(plan, streams, size)
    frames, masks = [], []
    for second, sounding in enumerate(plan.sounding):
        frame, owner = scene.render(second + FRAME_OFFSET)
        classes = [CATEGORIES.index(item.category) + 1 if item.category in sounding else 0 for item in scene.items]
        frames.append(frame)
        masks.append(np.array([0, *classes], np.uint8)[owner])
    voices = streams[3].spawn(1 + len(CATEGORIES))
    sources = [(n, on, np.random.default_rng(voices[1 + CATEGORIES.index(n)])) for n, on in plan.schedules.items()]
    waveform = mix_sources(sources, plan.num_frames, np.random.default_rng(voices[0]))
    first_only = KINDS[kind].first_frame_only and split == "train"
    labelled = [second == 0 or not first_only for second in range(plan.num_frames)]
    return SyntheticClip(
        plan.video_id, kind, split, frames, masks, labelled, waveform, plan.sounding, plan.silent, scene
    )
