"""Does a checkpoint listen? The same pictures under their own sound, in silence and under the sound of something else.

    python tests/programs/listening.py --model CHECKPOINT --parts PARTS                 # composed of a folder of parts
    python tests/programs/listening.py --model CHECKPOINT --rows FOLDER --subset avss   # rows of a data set

Prints, for all and for each class: M_J and M_F under the right sound, the share of the picture that is lit under
another sound and in silence, and of composed clips the share of the silent objects' pixels that is lit under the right
sound. `--calibrate` prints what each weight of the background would give instead. A folder of parts is `objects/`,
`sounds/`, `backgrounds/` and `splits.csv`; other names by `--layout photos sounds backgrounds parts.csv`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import combo_hf
from combo_hf.data.collate import ClipExample, plain_example
from combo_hf.data.compose import ComposedClip, ComposeRules, compose_clip, read_parts
from combo_hf.data.compose_sounds import SAMPLING_RATE
from combo_hf.data.rows import make_pictures
from combo_hf.evaluation.calibration import BACKGROUND_WEIGHTS
from combo_hf.evaluation.scores import predict_class_maps, sounding_scores, truth_of
from combo_hf.metrics import f_measure, jaccard


STAGES = ("photograph", "side_by_side", "cut_outs")
SOUNDS = ("right", "other", "silence", "no class")


@dataclass
class Shown:
    """One picture sequence under several sounds; `silent` (T, H, W) marks objects that are seen and not heard."""

    group: str
    category: str
    under: dict[str, ClipExample]
    silent: np.ndarray | None = None


def from_parts(arguments: argparse.Namespace, size: int, seed: int) -> Iterator[Shown]:
    """Composed clips in which one thing sounds; what sounds changes no pixel, so the others are the same clips."""
    folders = [arguments.parts / name for name in arguments.layout]
    parts = read_parts(folders[0], folders[1], folders[2], arguments.split, folders[3])
    classes = len(parts.classes) + 1

    def example(clip: ComposedClip) -> ClipExample:
        known = [True] * len(clip.frames)
        parts = clip.video_id, clip.frames, None, clip.waveform, SAMPLING_RATE, clip.masks, known
        return plain_example(make_pictures(*parts, classes), size)

    for stage in STAGES:
        for index in range(arguments.clips):
            clips = {}
            for sound, case in zip(SOUNDS, ("one", "absent", "silence", "other"), strict=True):
                rules = ComposeRules({stage: 1.0}, {case: 1.0}, microphone=arguments.microphone)
                clips[sound] = compose_clip(
                    parts, "avss", seed, index, arguments.split, max(size, 160), arguments.frames, rules
                )
            right = clips["right"]
            heard = {name for second in right.sounding for name in second}
            if right.case != "one" or not heard:
                continue  # nothing in it has a sound
            numbers = [number + 1 for number, name in enumerate(right.visible) if name not in heard]
            silent = np.stack([np.isin(objects, numbers) for objects in right.objects])
            step = np.linspace(0, silent.shape[1] - 1, size).round().astype(int)
            under = {sound: example(clip) for sound, clip in clips.items()}
            yield Shown(stage, heard.pop(), under, silent[:, step][:, :, step])


def from_rows(arguments: argparse.Namespace, size: int, num_labels: int) -> Iterator[Shown]:
    """Rows of a data set; another sound is that of the next row of another category."""
    from combo_hf.data.collate import SILENCE
    from combo_hf.data.loading import load_avsbench
    from combo_hf.data.rows import decode_row

    rows = load_avsbench(arguments.rows, arguments.split, subset=arguments.subset)
    rows = rows.select(range(min(len(rows), arguments.clips)))
    names = [set(filter(None, str(row["category"]).split(","))) for row in rows]
    examples = [plain_example(decode_row({**row, "maskiges": None}, num_labels), size) for row in rows]
    for index, example in enumerate(examples):
        later = [(index + step) % len(examples) for step in range(1, len(examples))]
        other = next((k for k in later if names[k] and not names[k] & names[index]), None)
        features = {"right": example.input_features, "silence": torch.full_like(example.input_features, SILENCE)}
        if other is not None:
            take = torch.arange(len(example.frames)) % len(examples[other].frames)
            features["other"] = examples[other].input_features[take]
        under = {
            sound: ClipExample(example.video_id, example.frames, None, values, example.masks, example.label_frames)
            for sound, values in features.items()
        }
        yield Shown("rows", ",".join(sorted(names[index])) or "nothing", under)


class Table:
    """Sums of what is measured, by group and class."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}

    def add(self, shown: Shown, name: str, value: float) -> None:
        for key in (shown.group, f"{shown.group}, {shown.category}"):
            self.values.setdefault(key, {}).setdefault(name, []).append(value)

    def means(self) -> dict[str, dict[str, float]]:
        return {
            key: {name: round(float(np.mean(values)), 4) for name, values in found.items()}
            | {"clips": max(len(values) for values in found.values())}
            for key, found in sorted(self.values.items())
        }


def score(model: torch.nn.Module, clips: Iterator[Shown]) -> Table:
    """Everything that is printed."""
    table = Table()
    for shown in clips:
        maps = dict(zip(shown.under, predict_class_maps(model, list(shown.under.values())), strict=True))
        for sound, class_maps in maps.items():
            scores, truth = sounding_scores(class_maps), truth_of(shown.under["right"].masks)
            lit = scores > 0.5
            if sound != "right":
                table.add(shown, f"lit under {sound}", lit.float().mean().item())
                continue
            if truth.any():
                table.add(shown, "M_J", jaccard(scores, truth))
                table.add(shown, "M_F", f_measure(scores, truth))
                named = class_maps.argmax(1)[lit & truth]
                wanted = shown.under["right"].masks[lit & truth]
                if len(named):
                    table.add(shown, "right class", (named == wanted).float().mean().item())
            if shown.silent is not None and shown.silent.any():
                silent = torch.from_numpy(shown.silent)[shown.under["right"].label_frames]
                table.add(shown, "silent object lit", lit[silent].float().mean().item())
    return table


def calibrate(model: torch.nn.Module, clips: Callable[[], Iterator[Shown]]) -> dict[float, dict[str, float]]:
    """What each weight of the background would give over all clips together."""
    found: dict[float, dict[str, list[float]]] = {weight: {} for weight in BACKGROUND_WEIGHTS}
    before, model.config.background_weight = model.config.background_weight, 1.0
    for shown in clips():
        maps = dict(zip(shown.under, predict_class_maps(model, list(shown.under.values())), strict=True))
        truth = truth_of(shown.under["right"].masks)
        for weight, values in found.items():
            for sound, class_maps in maps.items():
                lit = class_maps[:, 1:].amax(1) > weight * class_maps[:, 0]
                right = sound == "right"
                value = jaccard(lit.float(), truth) if right else lit.float().mean().item()
                name = f"M_J, {shown.group}" if right else f"lit under {sound}"
                values.setdefault(name, []).append(value)
    model.config.background_weight = before
    return {weight: {name: float(np.mean(v)) for name, v in values.items()} for weight, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; default: the bundled weights")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--parts", type=Path)
    source.add_argument("--rows", type=Path)
    parser.add_argument("--layout", nargs=4, default=("objects", "sounds", "backgrounds", "splits.csv"))
    parser.add_argument("--subset", default="avss")
    parser.add_argument("--split", default="val")
    parser.add_argument("--clips", type=int, default=40, help="of each kind of composed clip, or rows")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--microphone", type=float, default=1.0)
    parser.add_argument("--silent-twin", action="store_true", help="the model never gets a sound")
    parser.add_argument("--calibrate", action="store_true", help="print what each background weight gives, and end")
    parser.add_argument("--background-weight", type=float, help="instead of the model's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = combo_hf.resolve_model(arguments.model)
    model = combo_hf.ComboForAudioVisualSegmentation.from_pretrained(name).eval()
    if arguments.background_weight is not None:
        model.config.background_weight = arguments.background_weight
    size, num_labels = model.config.image_size, model.config.num_labels

    def clips() -> Iterator[Shown]:
        found = (
            from_rows(arguments, size, num_labels) if arguments.rows else from_parts(arguments, size, arguments.seed)
        )
        for shown in found:
            if arguments.silent_twin:
                from combo_hf.data.collate import SILENCE

                for example in shown.under.values():
                    example.input_features.fill_(SILENCE)
            yield shown

    if arguments.calibrate:
        for weight, values in calibrate(model, clips).items():
            print(weight, json.dumps({key: round(value, 3) for key, value in values.items()}))
        return
    for key, values in score(model, clips()).means().items():
        print(f"{key:24}", json.dumps(values))


if __name__ == "__main__":
    main()
