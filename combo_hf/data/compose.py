"""Photographs with masks, sounds and backgrounds -> audio-visual clips whose ground truth is known.

Videos with masks of what sounds are scarce; photographs with masks of an object and recordings of one are not. As the
field does it (VPO of CAVP, CVPR 2024, lays VGGSound's audio under COCO's objects), a clip shows one or more objects
and lets one, two or none of them sound; or something that is not there, or nothing.

    objects/CLASS/NAME.jpg   with NAME.png beside it, the mask of all objects of the class (anything but 0)
    sounds/CLASS/NAME.ogg    (flac, wav, mp3, ...); folders whose names begin with "_" are sounds of no class
    backgrounds/NAME.jpg     pictures without any of the classes (optional)

A class without sounds is shown and never heard. A clip is a function of the parts, the rules, (kind, seed, split,
index) and of nothing else.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from combo_hf.data.compose_scenes import Layer, Scene, cover, grade, paste, read_picture
from combo_hf.data.compose_sounds import SAMPLING_RATE, Microphone, Source, audible, read_recording


SPLITS = ("train", "val", "test")
KINDS = ("s4", "ms3", "avss")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SOUNDS = (".ogg", ".flac", ".wav", ".mp3", ".opus", ".aiff")
NO_CLASS = "_"  # begins the name of a folder of sounds that belong to no class
HELD_OUT = 8  # one part in so many is of "val", another of "test", where no file says which
FRAME_OFFSET = 15 / 16  # AVSBench took its frames near the end of each second
STAGES = {"photograph": 0.4, "side_by_side": 0.3, "cut_outs": 0.25, "empty": 0.05}
CASES = {"one": 0.55, "two": 0.1, "absent": 0.18, "other": 0.07, "silence": 0.1}
ASPECTS = (16 / 9, 4 / 3, 1.0, 3 / 4)
ASPECT_SHARES = (0.4, 0.3, 0.2, 0.1)
UNDER_SHARE, UNDER_DB = 0.25, (-22.0, -6.0)  # a sound of no class under the others
STEADY = {"s4": 1.0, "ms3": 0.1, "avss": 0.6}  # share of the clips whose sources sound all the time


@dataclass(frozen=True)
class ObjectPart:
    """A photograph of one class."""

    category: str
    picture: Path
    mask: Path


@dataclass(frozen=True)
class Parts:
    """The parts of one split, each list sorted by name.

    Attributes:
        classes: names, sorted: those that have a sound. Class k + 1 of the masks is `classes[k]`, 0 is background.
        objects, sounds: by class; sounds of no class are under "".
        backgrounds: pictures.
    """

    classes: tuple[str, ...]
    objects: Mapping[str, tuple[ObjectPart, ...]]
    sounds: Mapping[str, tuple[Path, ...]]
    backgrounds: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ComposeRules:
    """What clips are made.

    Attributes:
        stages: share of photographs as they are, two photographs side by side, cut-outs on backgrounds, and empty
            pictures.
        cases: share of clips in which one of the visible things sounds, two do, a class that is not there ("absent"),
            a sound of no class ("other"), or nothing ("silence"). What a scene has not got becomes "one", and where
            nothing visible has a sound, "absent".
        motion: of camera and objects: 0 none, 1 as a hand holds it.
        microphone: 0: the recordings as they are; 1: far away, in rooms, with noise, see [`Microphone`].
        grading: how much the colours of a clip are off, 0 to 1.

    Raises:
        ValueError: an unknown name, a negative share or a strength out of range.
    """

    stages: Mapping[str, float] = field(default_factory=lambda: dict(STAGES))
    cases: Mapping[str, float] = field(default_factory=lambda: dict(CASES))
    motion: float = 1.0
    microphone: float = 1.0
    grading: float = 1.0

    def __post_init__(self) -> None:
        for name, shares, known in (("stages", self.stages, STAGES), ("cases", self.cases, CASES)):
            unknown = sorted(set(shares) - set(known))
            if unknown:
                raise ValueError(f"{name}: unknown {unknown[0]!r}; use some of {sorted(known)}.")
            if not all(np.isfinite(share) and share >= 0 for share in shares.values()) or not sum(shares.values()) > 0:
                raise ValueError(f"{name}: wanted shares of at least 0, one of them more, got {dict(shares)}.")
        for name in ("motion", "microphone", "grading"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: wanted 0 to 1, got {getattr(self, name)}.")


@dataclass
class ComposedClip:
    """One clip with its ground truth: T seconds, one frame and one mask a second.

    Attributes:
        frames: T RGB images at t = k + 15/16 s.
        masks: T uint8 arrays (H, W) of class indices: the visible part of what is heard in that second.
        objects: T uint8 arrays (H, W): number of the visible object, heard or not, 0 for none.
        label_frames: T flags; of the train split of "s4" only the first frame counts as annotated.
        waveform: float32 (T * 16000,), mono.
        visible: class of each object, in the order of the numbers.
        sounding: the classes that are seen and heard, for each second.
        stage, case: how it was made, see [`ComposeRules`].
        heard: the classes whose sounds were used, seen or not.
    """

    video_id: str
    kind: str
    split: str
    frames: list[Image.Image]
    masks: list[np.ndarray]
    objects: list[np.ndarray]
    label_frames: list[bool]
    waveform: np.ndarray
    visible: list[str]
    sounding: list[list[str]]
    stage: str
    case: str
    heard: list[str]
    scene: Scene = field(repr=False)

    def render_video(self, fps: float, height: int) -> Iterator[Image.Image]:
        """The whole clip at `fps` frames per second, in its own aspect ratio; sides are even."""
        width = 2 * round(height * self.scene.aspect / 2)
        for number in range(round(len(self.frames) * fps)):
            yield self.scene.render(number / fps, height, width)[0]


def read_parts(
    objects: str | Path,
    sounds: str | Path,
    backgrounds: str | Path | None = None,
    split: str = "train",
    splits_from: str | Path | None = None,
) -> Parts:
    """Find the parts of one split.

    Args:
        objects, sounds, backgrounds: folders, see the head of this file.
        split (`str`): "train", "val" or "test".
        splits_from (*optional*): csv file with the columns `id` (name of a part without ending), `split`, and, if ids
            are not unique, `class`; parts that it does not name are left out. Default: by a hash of class and name.

    Raises:
        ValueError: a folder without parts, an object without a mask, an unknown split, or a csv file without columns.
        FileNotFoundError: no such folder or file.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {list(SPLITS)}.")
    table = None if splits_from is None else _read_splits(Path(splits_from))

    def mine(category: str, path: Path) -> bool:
        if table is not None:
            return table.get((category, path.stem), table.get(("", path.stem))) == split
        bucket = int(hashlib.sha256(f"{category}/{path.stem}".encode()).hexdigest(), 16) % HELD_OUT
        return split == {0: "val", 1: "test"}.get(bucket, "train")

    found_objects: dict[str, tuple[ObjectPart, ...]] = {}
    for folder in _folders(Path(objects), "objects"):
        pictures = [path for path in _files(folder, PICTURES) if path.suffix.lower() != ".png"]
        for path in pictures:
            if not path.with_suffix(".png").is_file():
                raise ValueError(f"{path}: its mask {path.stem}.png is missing; every object needs one beside it.")
        parts = tuple(ObjectPart(folder.name, p, p.with_suffix(".png")) for p in pictures if mine(folder.name, p))
        if parts:
            found_objects[folder.name] = parts
    found_sounds: dict[str, list[Path]] = {}
    for folder in _folders(Path(sounds), "sounds"):
        name = "" if folder.name.startswith(NO_CLASS) else folder.name
        found_sounds.setdefault(name, []).extend(p for p in _files(folder, SOUNDS) if mine(folder.name, p))
    heard = {name: tuple(paths) for name, paths in sorted(found_sounds.items()) if paths}
    pictures = [] if backgrounds is None else _files(_folder(Path(backgrounds), "backgrounds"), PICTURES)
    # all splits have the same classes, also where one has no sound of a rare class
    classes = tuple(sorted(name for name in found_sounds if name))
    if not classes or not found_objects:
        raise ValueError(f"{objects} and {sounds}: no class of the split {split!r} has both pictures and sounds.")
    return Parts(classes, found_objects, heard, tuple(p for p in pictures if mine("", p)))


def compose_clip(
    parts: Parts,
    kind: str,
    seed: int,
    index: int,
    split: str = "train",
    size: int = 224,
    num_frames: int = 5,
    rules: ComposeRules | None = None,
) -> ComposedClip:
    """Make one clip.

    Args:
        parts ([`Parts`]): of that split.
        kind (`str`): "s4" (one source, steady; train labels on the first frame only), "ms3" (up to two that start and
            stop) or "avss" (the same, class indices matter).
        seed, index (`int`): at least 0.
        split (`str`)
        size (`int`): height and width of frames and masks in pixels. The aspect ratio of the scene is not kept, as in
            AVSBench, whose frames were made square.
        num_frames (`int`): length in seconds.
        rules ([`ComposeRules`], *optional*)

    Raises:
        ValueError: an unknown kind, a number out of range, or a part that cannot be read.
    """
    rules = rules or ComposeRules()
    if kind not in KINDS or split not in SPLITS:
        raise ValueError(f"wanted a kind of {list(KINDS)} and a split of {list(SPLITS)}, got {kind!r} and {split!r}.")
    if seed < 0 or index < 0 or size < 32 or num_frames < 1:
        raise ValueError(f"wanted seed, index >= 0, size >= 32, num_frames >= 1; got {seed, index, size, num_frames}.")
    entropy = [seed, KINDS.index(kind), SPLITS.index(split), index]
    plan, look, sound = (np.random.default_rng(stream) for stream in np.random.SeedSequence(entropy).spawn(3))
    stage = _draw(plan, rules.stages)
    shown = _choose_objects(parts, stage, plan)
    case, heard = _choose_sounds(parts, kind, [part.category for part in shown], rules, plan)
    schedules = [_schedule(plan, num_frames, STEADY[kind]) for _ in heard]
    scene = _build_scene(parts, stage, shown, num_frames, rules, look)
    waveform, audible_in = _record(parts, case, heard, schedules, num_frames, rules, sound)
    frames, owners = zip(*(scene.render(t + FRAME_OFFSET, size, size) for t in range(num_frames)), strict=True)
    visible = [part.category for part in shown]
    sounding = [[name for name in heard if name in visible and audible_in[name][t]] for t in range(num_frames)]
    masks = []
    for owner, names in zip(owners, sounding, strict=True):
        classes = [parts.classes.index(name) + 1 if name in names else 0 for name in visible]
        masks.append(np.array([0, *classes], np.uint8)[owner])
    first_only = kind == "s4" and split == "train"
    return ComposedClip(
        f"composed_{kind}_{split}_{seed}_{index:06d}",
        kind,
        split,
        list(frames),
        masks,
        list(owners),
        [t == 0 or not first_only for t in range(num_frames)],
        waveform,
        visible,
        sounding,
        stage,
        case,
        heard,
        scene,
    )


def _draw(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    names = list(shares)
    weights = np.array([shares[name] for name in names], float)
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _choose_objects(parts: Parts, stage: str, rng: np.random.Generator) -> list[ObjectPart]:
    """Objects of different classes, at least one with a sound unless the stage is empty."""
    if stage == "empty" and parts.backgrounds:
        return []
    with_sound = [name for name in parts.objects if name in parts.classes and name in parts.sounds]
    names = [with_sound[int(rng.integers(len(with_sound)))]]
    wanted = {"side_by_side": 2, "cut_outs": int(rng.integers(1, 4))}.get(stage, 1)
    if stage == "photograph" and rng.random() < 0.1:  # now and then one that is never heard
        names = [sorted(parts.objects)[int(rng.integers(len(parts.objects)))]]
    others = sorted(set(parts.objects) - set(names))
    names += [others[k] for k in rng.permutation(len(others))[: wanted - 1]]
    chosen = [parts.objects[name][int(rng.integers(len(parts.objects[name])))] for name in names]
    return [chosen[k] for k in rng.permutation(len(chosen))]


def _choose_sounds(
    parts: Parts, kind: str, visible: list[str], rules: ComposeRules, rng: np.random.Generator
) -> tuple[str, list[str]]:
    """The case and the classes whose sounds are used."""
    can_sound = [name for name in visible if name in parts.sounds]
    absent = [name for name in parts.sounds if name and name not in visible]
    case = _draw(rng, rules.cases)
    if case == "two" and (len(can_sound) < 2 or kind == "s4"):
        case = "one"
    if case == "other" and "" not in parts.sounds:
        case = "silence"
    if case == "one" and not can_sound:
        case = "absent"
    if case == "absent" and not absent:
        case = "silence"
    pool = {"one": can_sound, "two": can_sound, "absent": absent}.get(case, [])
    order = rng.permutation(len(pool))
    return case, [pool[k] for k in order[: {"one": 1, "two": 2, "absent": 1}.get(case, 0)]]


def _schedule(rng: np.random.Generator, seconds: int, steady: float) -> tuple[bool, ...]:
    """When a source sounds: it tends to go on as it is, and sounds in one second at least."""
    if seconds == 1 or rng.random() < steady:
        return (True,) * seconds
    on = [bool(rng.random() < 0.65)]
    while len(on) < seconds:
        on.append(bool(rng.random() < (0.75 if on[-1] else 0.5)))
    if not any(on):
        on[int(rng.integers(seconds))] = True
    return tuple(on)


def _build_scene(
    parts: Parts, stage: str, shown: list[ObjectPart], seconds: int, rules: ComposeRules, rng: np.random.Generator
) -> Scene:
    """Nothing in it depends on what sounds."""
    aspect = float(rng.choice(ASPECTS, p=ASPECT_SHARES))
    whole = (0.0, 0.0, aspect, 1.0)
    pictures = [read_picture(part.picture, part.mask) for part in shown]
    layers: list[Layer] = []
    if stage in ("cut_outs", "empty") and parts.backgrounds:
        behind = read_picture(parts.backgrounds[int(rng.integers(len(parts.backgrounds)))], None)
        layers.append(cover(behind, whole, seconds, rules.motion, 0, rng))
        edges = np.linspace(0, aspect, len(pictures) + 1)
        for number, picture in enumerate(pictures):
            slot = (float(edges[number]), float(edges[number + 1]))
            layers.append(paste(picture, slot, seconds, rules.motion, number + 1, rng))
    elif len(pictures) == 1:
        layers.append(cover(pictures[0], whole, seconds, rules.motion, 1, rng))
    else:
        cuts = np.linspace(0, 1, len(pictures) + 1)
        cuts[1:-1] += rng.uniform(-0.1, 0.1, len(cuts) - 2) / len(pictures)
        for number, picture in enumerate(pictures):
            low, high = float(cuts[number]), float(cuts[number + 1])
            region = (low * aspect, 0.0, high * aspect, 1.0) if aspect >= 1 else (0.0, low, aspect, high)
            layers.append(cover(picture, region, seconds, rules.motion, number + 1, rng))
    return grade(Scene(aspect, layers), rules.grading, rng)


def _record(
    parts: Parts,
    case: str,
    heard: list[str],
    schedules: list[tuple[bool, ...]],
    seconds: int,
    rules: ComposeRules,
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, list[bool]]]:
    """The sound of a clip (T * 16000,), and for each class in which seconds it is heard."""

    def recording(name: str) -> np.ndarray:
        return read_recording(parts.sounds[name][int(rng.integers(len(parts.sounds[name])))])

    waves, audible_in = [], {}
    for number, (name, schedule) in enumerate(zip(heard, schedules, strict=True)):
        level = float(rng.uniform(-6, 0)) if number else 0.0
        waves.append(Source(recording(name), schedule, level).sound(rng))
        audible_in[name] = [bool(on and loud) for on, loud in zip(schedule, audible(waves[-1]), strict=True)]
    under = "" in parts.sounds and waves and rng.random() < UNDER_SHARE * rules.microphone
    if case == "other" or under:
        level = float(rng.uniform(*UNDER_DB)) if waves else 0.0
        waves.append(Source(recording(""), (True,) * seconds, level).sound(rng))
    return Microphone(rules.microphone).record(waves, seconds * SAMPLING_RATE, rng), audible_in


def _read_splits(path: Path) -> dict[tuple[str, str], str]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"id", "split"} <= set(rows[0]):
        raise ValueError(f"{path}: wanted a csv file with the columns id and split, and perhaps class.")
    return {(row.get("class") or "", row["id"]): row["split"] for row in rows}


def _folder(path: Path, name: str) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"{name}: no folder {path}.")
    return path


def _folders(path: Path, name: str) -> list[Path]:
    found = sorted(entry for entry in _folder(path, name).iterdir() if entry.is_dir())
    if not found:
        raise ValueError(f"{name}: {path} holds no folders; wanted one for each class.")
    return found


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
