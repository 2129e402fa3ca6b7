"""`combo-hf demo`, `predict` and `info`."""

from __future__ import annotations

import argparse
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from combo_hf import resolve_model
from combo_hf.commands.common import (
    DEVICE,
    PROGRAM,
    InputError,
    add_command,
    device,
    generator_option,
    load_transformers,
    named,
    positive,
    proposals,
    reason,
)
from combo_hf.files.environment import package_versions
from combo_hf.files.progress import Progress
from combo_hf.files.wording import visible
from combo_hf.results.records import TIMELINES


BUNDLED_NOTE = (
    "Note: the bundled weights know seven animals (bird, cat, cow, dog, hen, lion, sheep) and nothing else; "
    "they are for research that is not commercial. For other things name a model: --model"
)
# Endings of the files that `predict FOLDER` takes.
VIDEO_ENDINGS = frozenset(
    f".{ending}"
    for ending in "mp4 m4v mov mkv webm avi mpg mpeg ts m2ts mts vob wmv asf flv 3gp ogv mxf dv gif webp".split()
)
DEMO_CLIP = "demo_real.mp4"  # CREDITS.md beside it names the authors
PACKAGES = "combo-hf torch transformers huggingface-hub numpy pillow av scikit-image".split()


def demo(arguments: argparse.Namespace) -> None:
    """Segment the bundled clip with the bundled weights."""
    from combo_hf import ASSETS, load_pipeline
    from combo_hf.results.folder import predict_to_folder

    clip = ASSETS / DEMO_CLIP
    if not clip.is_file():
        raise InputError(f"{clip.name}: the demo clip is missing from this installation; reinstall {PROGRAM}")
    pipe = load_pipeline(device=arguments.device)
    with Progress(clip.name, "window") as progress:
        prediction = predict_to_folder(pipe, clip, arguments.output, "demo", fps=5, sheet=True, progress=progress)
    print(f"What sounds when: {prediction.summary}")
    _print_files(prediction)
    print(BUNDLED_NOTE)


def check_predict(arguments: argparse.Namespace) -> None:
    """Whether there is such a model and, where one video is named, such a file."""
    with named(arguments.model):
        resolve_model(arguments.model)
    word = arguments.source[0]
    if len(arguments.source) == 1 and not (
        word == "-" or "://" in word or glob.has_magic(word) or Path(word).exists()
    ):
        raise InputError(f"{word}: no such file.")


def predict(arguments: argparse.Namespace) -> int:
    """Segment videos; one that cannot be read does not keep the others from being done."""
    from combo_hf import load_pipeline
    from combo_hf.results.folder import display_name, predict_to_folder

    options = _generator(arguments.proposals, arguments.device, dict(arguments.option))
    with named(arguments.model or "bundled weights", loading=True):
        pipe = load_pipeline(arguments.model, device=arguments.device, **options)
    failed = False
    sources = list(_sources(arguments.source))
    for source, name in _unique_names(sources):
        shown = name if isinstance(source, bytes) else display_name(source)
        try:
            with (
                named(shown),
                Progress(name, "window") as progress,
            ):
                prediction = predict_to_folder(
                    pipe, source, arguments.output, name, progress=progress, fps=arguments.fps,
                    threshold=arguments.threshold, min_area=arguments.min_area, labels=arguments.labels,
                    follow=arguments.follow,
                    timelines=arguments.timeline or (),
                    matte=arguments.matte_format if arguments.matte or arguments.matte_each else None,
                    matte_each=arguments.matte_each, mask_rate=arguments.mask_rate,
                    batch_size=arguments.batch_size, masks=arguments.masks, summary=arguments.json,
                    sheet=arguments.sheet, classes=arguments.classes, video_track=arguments.video_track,
                    audio_track=arguments.audio_track)  # fmt: skip
        except InputError as error:
            if arguments.debug or len(sources) == 1:
                raise
            print(f"{PROGRAM}: error: {reason(error)}", file=sys.stderr)
            failed = True
            continue
        print(visible(f"{shown}: {prediction.summary}{'' if prediction.has_audio else ' (no sound track)'}"))
        for note in prediction.warnings:
            print(visible(f"  note     {note}"))
        _print_files(prediction)
    if arguments.model is None:
        print(BUNDLED_NOTE)
    return 2 if failed else 0


def info(arguments: argparse.Namespace) -> None:
    """Versions, devices and the bundled weights; or the parts of a given model."""
    if arguments.model is not None:
        resolve_model(arguments.model)
    import torch

    from combo_hf import BUNDLED_MODEL, DEFAULT_MODEL

    if arguments.model is None:
        for package, version in package_versions(PACKAGES).items():
            print(f"{package:16} {version}")
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        print(f"{'devices':16} {', '.join(['cpu', *names])}")
        for name, folder, facts in (
            ("bundled weights", DEFAULT_MODEL, DEFAULT_MODEL / "real.json"),
            ("drawn scenes", BUNDLED_MODEL, BUNDLED_MODEL / "demo.json"),
        ):
            print(f"{name:16} {folder if (folder / 'config.json').is_file() else 'missing'}")
            print("\n".join(_outline(json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {})))
        return
    load_transformers()
    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation

    with named(arguments.model, loading=True):
        model = ComboForAudioVisualSegmentation.from_pretrained(resolve_model(arguments.model))
    for name, part in model.model.named_children():
        print(f"{name:16} {sum(values.numel() for values in part.parameters()):>12,} parameters")
    print(f"{'all':16} {model.num_parameters():>12,} parameters")


def _outline(facts: dict[str, Any], indent: str = "  ") -> Iterator[str]:
    """A line for every fact, those of a group under its name."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{name}"
            yield from _outline(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value}"


def register(commands: Any) -> None:
    """Add the sub-commands."""
    command = add_command(commands, "demo", demo, "segment the bundled clip", f"{PROGRAM} demo --output combo-demo")
    command.add_argument("--output", type=Path, default=Path("combo-demo"), help="folder, default ./combo-demo")
    command.add_argument("--device", type=device, help=DEVICE)

    example = f"{PROGRAM} predict street.mp4 --output out --model my-model --masks --json"
    command = add_command(commands, "predict", predict, "segment videos", example, check_predict)
    text = "video: file, folder of files, pattern, http(s) URL, or - for standard input"
    command.add_argument("source", nargs="+", help=text)
    command.add_argument("--output", type=Path, required=True, help="folder for the results")
    command.add_argument("--model", help="folder or Hub id; default: the bundled weights (seven animals)")
    text = "proposal model, NAME or NAME=folder or Hub id (mobile_sam=my-mobile-sam); default: what the model says"
    command.add_argument("--proposals", type=proposals, metavar="NAME[=MODEL]", help=text)
    text = "of the proposal model: points_per_side=8, stability_score_thresh=0.85, ...; may be repeated"
    command.add_argument(
        "--option", type=generator_option, action="append", default=[], metavar="NAME=VALUE", help=text
    )
    text = "only these, separated by commas; default: all the model knows"
    command.add_argument("--classes", type=_names, metavar="LABEL[,LABEL]", help=text)
    text = "share of all class scores below which a pixel stays background, 0 to 1, default 0"
    command.add_argument("--threshold", type=_share, default=0.0, metavar="SHARE", help=text)
    text = "leave out segments of fewer pixels"
    command.add_argument("--min-area", type=positive, default=0, metavar="PIXELS", help=text)
    text = "frames per second to segment, 0.2 or 4 for example; default auto: one, up to four where something moves"
    command.add_argument("--fps", type=_rate, default="auto", metavar="auto|N", help=text)
    command.add_argument("--batch-size", type=positive, default=1, help="windows per batch, default 1")
    text = "number of the {} track to take, from 1; default: what a player would take"
    command.add_argument("--video-track", type=positive, metavar="N", help=text.format("picture"))
    command.add_argument("--audio-track", type=positive, metavar="N", help=text.format("sound"))
    command.add_argument("--masks", action="store_true", help="also an index PNG per frame, its time in the name")
    text = "one PNG per frame that was segmented (network, default), or per picture of the video"
    command.add_argument("--mask-rate", choices=("network", "video"), default="network", help=text)
    text = "also a video with an alpha channel, for editors: transparent where nothing sounds"
    command.add_argument("--matte", action="store_true", help=text)
    text = "ProRes 4444 (mov, default) or VP9 (webm)"
    command.add_argument("--matte-format", choices=("mov", "webm"), default="mov", help=text)
    command.add_argument("--matte-each", action="store_true", help="a matte for each class, in place of one for all")
    command.add_argument("--json", action="store_true", help="also a JSON file: labels, scores, areas per frame")
    text = "also what sounds when: subtitles (srt, vtt), a table (csv), a label track (audacity)"
    command.add_argument("--timeline", action="append", choices=TIMELINES, help=text)
    text = "do not write the names of the classes on the overlay"
    command.add_argument("--no-labels", action="store_false", dest="labels", help=text)
    text = "paint each mask over its whole 1/fps s; default: masks follow what moves between the pictures segmented"
    command.add_argument("--no-follow", action="store_false", dest="follow", help=text)
    command.add_argument("--sheet", action="store_true", help="also a contact sheet")
    command.add_argument("--device", type=device, help=DEVICE)

    text = "versions, devices, or the parts of a model"
    command = add_command(commands, "info", info, text, f"{PROGRAM} info my-model", light=True)
    command.add_argument("model", nargs="?", help="folder or Hub id")


def _generator(proposals: dict[str, Any] | None, device: str | None, options: dict[str, Any]) -> dict[str, Any]:
    from combo_hf.proposals_combo import get_proposal_generator

    if proposals is None:
        if options:
            raise InputError("--option is of a generator: name it with --proposals")
        return {}
    placed = {"device": device} if device and "model" in proposals else {}
    with named("--proposals"):
        try:
            return {"proposal_generator": get_proposal_generator({**proposals, **placed, **options})}
        except TypeError as error:  # an option that the generator does not have
            raise InputError(f"--proposals: {error}") from error


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} holds no names")
    return names


def _rate(text: str) -> float | str:
    from combo_hf.media_combo_shown import AUTO, check_fps

    try:
        return check_fps(text if text == AUTO else float(text))
    except ValueError:
        wanted = "auto, a whole number of at least 1, or a number between 0 and 1"
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _sources(words: Sequence[str]) -> Iterator[str | bytes]:
    """Files, with those of folders and patterns, in order of their names; `-` is what standard input holds."""
    for word in words:
        path = Path(word)
        if word == "-":
            yield sys.stdin.buffer.read()
        elif path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in VIDEO_ENDINGS)
            if not files:
                raise InputError(f"{path.name}: no videos in this folder; pass a file.")
            yield from map(str, files)
        elif "://" not in word and not path.exists() and glob.has_magic(word):
            files = sorted(map(Path, glob.glob(word)))
            if not files:
                raise InputError(f"{word}: no file matches.")
            yield from map(str, files)
        else:
            yield word


def _unique_names(sources: Sequence[str | bytes]) -> Iterator[tuple[str | bytes, str]]:
    from combo_hf.results.folder import source_name

    seen: dict[str, int] = {}
    for source in sources:
        name = "stdin" if isinstance(source, bytes) else source_name(source)
        seen[name] = seen.get(name, 0) + 1
        yield source, name if seen[name] == 1 else f"{name}-{seen[name]}"


def _print_files(prediction: Any) -> None:
    for kind, path in prediction.files.items():
        print(visible(f"  {kind:8} {path}"))
