"""`combo-hf demo`, `predict` and `info`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from combo_hf.commands.common import (
    PROGRAM,
    InputError,
    add_command,
    device,
    load_transformers,
    named,
    positive,
    reason,
)
from combo_hf.files.environment import package_versions
from combo_hf.files.progress import Progress


BUNDLED_NOTE = (
    "Note: the bundled weights know only the synthetic scenes of this package; for real footage name a model: --model"
)
PACKAGES = "combo-hf torch transformers huggingface-hub numpy pillow av scikit-image".split()


def demo(arguments: argparse.Namespace) -> None:
    """Segment the bundled clip with the bundled weights."""
    from combo_hf import ASSETS, load_pipeline
    from combo_hf.results.folder import predict_to_folder

    clip = ASSETS / "demo_clip.mp4"
    if not clip.is_file():
        raise InputError(f"{clip.name}: the demo clip is missing from this installation; reinstall {PROGRAM}")
    pipe = load_pipeline(device=arguments.device)
    with Progress(clip.name, "window") as progress:
        prediction = predict_to_folder(pipe, clip, arguments.output, "demo", fps=5, sheet=True, progress=progress)
    print(f"What sounds when: {prediction.summary}")
    _print_files(prediction)
    print(BUNDLED_NOTE)


def predict(arguments: argparse.Namespace) -> int:
    """Segment videos; one that cannot be read does not keep the others from being done."""
    from combo_hf import load_pipeline
    from combo_hf.results.folder import display_name, predict_to_folder

    options = _generator(arguments.proposals, arguments.device)
    with named(arguments.model or "bundled weights", loading=True):
        pipe = load_pipeline(arguments.model, device=arguments.device, **options)
    failed = False
    for source, name in _unique_names(arguments.source):
        try:
            with named(display_name(source)), Progress(name, "window") as progress:
                prediction = predict_to_folder(
                    pipe, source, arguments.output, name, progress=progress, fps=arguments.fps,
                    batch_size=arguments.batch_size, masks=arguments.masks, summary=arguments.json,
                    sheet=arguments.sheet, classes=arguments.classes)  # fmt: skip
        except InputError as error:
            if arguments.debug or len(arguments.source) == 1:
                raise
            print(f"{PROGRAM}: error: {reason(error)}", file=sys.stderr)
            failed = True
            continue
        print(f"{display_name(source)}: {prediction.summary}{'' if prediction.has_audio else ' (no sound track)'}")
        for warning in prediction.warnings:
            print(f"  damaged  {warning}")
        _print_files(prediction)
    if arguments.model is None:
        print(BUNDLED_NOTE)
    return 2 if failed else 0


def info(arguments: argparse.Namespace) -> None:
    """Versions, devices and the bundled weights; or the parts of a given model."""
    import torch

    from combo_hf import BUNDLED_MODEL, resolve_model

    if arguments.model is None:
        for package, version in package_versions(PACKAGES).items():
            print(f"{package:16} {version}")
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        print(f"{'devices':16} {', '.join(['cpu', *names])}")
        facts = BUNDLED_MODEL / "demo.json"
        known = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
        print(f"{'bundled weights':16} {BUNDLED_MODEL if (BUNDLED_MODEL / 'config.json').is_file() else 'missing'}")
        print("\n".join(_outline(known)))
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
    command.add_argument("--device", type=device, help="cpu, cuda:0, ...; default: the first accelerator there is")

    example = f"{PROGRAM} predict street.mp4 --output out --model my-model --masks --json"
    command = add_command(commands, "predict", predict, "segment videos", example)
    command.add_argument("source", nargs="+", help="video: file or http(s) URL")
    command.add_argument("--output", type=Path, required=True, help="folder for the results")
    command.add_argument("--model", help="folder or Hub id; default: the bundled weights (synthetic scenes only)")
    text = "proposal model, NAME or NAME=folder or Hub id (mobile_sam=my-mobile-sam); default: what the model says"
    command.add_argument("--proposals", type=_proposals, metavar="NAME[=MODEL]", help=text)
    command.add_argument("--classes", nargs="+", metavar="LABEL", help="only these; default: all the model knows")
    command.add_argument("--fps", type=positive, default=1, help="frames per second to segment, default 1")
    command.add_argument("--batch-size", type=positive, default=1, help="windows per batch, default 1")
    command.add_argument("--masks", action="store_true", help="also an index PNG per frame")
    command.add_argument("--json", action="store_true", help="also a JSON file: labels, scores, areas per frame")
    command.add_argument("--sheet", action="store_true", help="also a contact sheet")
    command.add_argument("--device", type=device, help="cpu, cuda:0, ...; default: the first accelerator there is")

    text = "versions, devices, or the parts of a model"
    command = add_command(commands, "info", info, text, f"{PROGRAM} info my-model", light=True)
    command.add_argument("model", nargs="?", help="folder or Hub id")


def _proposals(text: str) -> dict[str, Any]:
    name, mark, model = text.partition("=")
    if not name or (mark and not model):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=folder or Hub id")
    return {"name": name, "model": model} if mark else {"name": name}


def _generator(proposals: dict[str, Any] | None, device: str | None) -> dict[str, Any]:
    from combo_hf.proposals_combo import get_proposal_generator

    if proposals is None:
        return {}
    placed = {"device": device} if device and "model" in proposals else {}
    with named("--proposals"):
        try:
            return {"proposal_generator": get_proposal_generator({**proposals, **placed})}
        except TypeError as error:  # weights for a generator that has none
            raise InputError(f"--proposals: {error}") from error


def _unique_names(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    from combo_hf.results.folder import source_name

    seen: dict[str, int] = {}
    for source in sources:
        name = source_name(source)
        seen[name] = seen.get(name, 0) + 1
        yield source, name if seen[name] == 1 else f"{name}-{seen[name]}"


def _print_files(prediction: Any) -> None:
    for kind, path in prediction.files.items():
        print(f"  {kind:8} {path}")
