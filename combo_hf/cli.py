"""The command `combo-hf`: thin sub-commands over public functions.

Bad input ends with exit code 2 and one line on stderr, Ctrl-C with 130; `--debug` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


PROGRAM = "combo-hf"
BUNDLED_NOTE = (
    "Note: the bundled weights know only the synthetic scenes of this package; for real footage name a model: --model"
)
BAD_INPUT = (ValueError, OSError, ImportError)
PACKAGES = "combo-hf torch torchaudio transformers huggingface-hub numpy pillow av scikit-image".split()


class InputError(ValueError):
    """Bad input, with the name of the file or option in front: `<name>: <reason>`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; default those of the process.

    Returns:
        Exit code: 0 done, 2 bad input, 130 interrupted.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        with _terminable():
            _quiet_transformers()
            return arguments.run(arguments) or 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted, nothing partial was left", file=sys.stderr)
        return 130
    except BAD_INPUT as error:
        if arguments.debug:
            raise
        print(f"{PROGRAM}: error: {_reason(error)}", file=sys.stderr)
        return 2


def demo(arguments: argparse.Namespace) -> None:
    """Segment the bundled clip with the bundled weights."""
    from . import ASSETS, load_pipeline
    from .prediction import predict_to_folder

    clip = ASSETS / "demo_clip.mp4"
    if not clip.is_file():
        raise InputError(f"{clip.name}: the demo clip is missing from this installation; reinstall {PROGRAM}")
    pipe = load_pipeline(device=arguments.device)
    with _progress_bar(clip.name) as progress:
        prediction = predict_to_folder(pipe, clip, arguments.output, "demo", fps=5, sheet=True, progress=progress)
    print(f"What sounds when: {prediction.summary}")
    _print_files(prediction)
    print(BUNDLED_NOTE)


def predict(arguments: argparse.Namespace) -> int:
    """Segment films; one that cannot be read does not keep the others from being done."""
    from . import load_pipeline
    from .prediction import predict_to_folder

    with _named(arguments.model or "bundled weights"):
        pipe = load_pipeline(arguments.model, device=arguments.device)
    failed = False
    for source, name in _unique_names(arguments.source):
        try:
            with _named(source), _progress_bar(name) as progress:
                prediction = predict_to_folder(
                    pipe, source, arguments.output, name, progress=progress, fps=arguments.fps,
                    batch_size=arguments.batch_size, masks=arguments.masks, summary=arguments.json,
                    sheet=arguments.sheet)  # fmt: skip
        except InputError as error:
            if arguments.debug or len(arguments.source) == 1:
                raise
            print(f"{PROGRAM}: error: {_reason(error)}", file=sys.stderr)
            failed = True
            continue
        print(f"{Path(str(source)).name}: {prediction.summary}{'' if prediction.has_audio else ' (no sound track)'}")
        for warning in prediction.warnings:
            print(f"  damaged  {warning}")
        _print_files(prediction)
    if arguments.model is None:
        print(BUNDLED_NOTE)
    return 2 if failed else 0


def info(arguments: argparse.Namespace) -> None:
    """Versions, devices and the bundled weights; or the parts of a given model."""
    import torch

    from . import BUNDLED_MODEL, ComboForAudioVisualSegmentation, resolve_model

    for package in PACKAGES if arguments.model is None else ():
        print(f"{package:16} {_version(package)}")
    if arguments.model is None:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        print(f"{'devices':16} {', '.join(['cpu', *names])}")
        facts = BUNDLED_MODEL / "demo.json"
        known = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
        print(f"{'bundled weights':16} {BUNDLED_MODEL if (BUNDLED_MODEL / 'config.json').is_file() else 'missing'}")
        for key, value in known.items():
            print(f"  {key}: {value}")
        return
    with _named(arguments.model):
        model = ComboForAudioVisualSegmentation.from_pretrained(resolve_model(arguments.model))
    for name, part in model.model.named_children():
        print(f"{name:16} {sum(values.numel() for values in part.parameters()):>12,} parameters")
    print(f"{'all':16} {model.num_parameters():>12,} parameters")


def convert(arguments: argparse.Namespace) -> None:
    """Convert a checkpoint of the official release into a folder that `--model` takes."""
    from .conversion.official import convert_official_checkpoint
    from .conversion.saving import check_output, save_converted

    check_output(arguments.output)
    with _named(arguments.checkpoint):
        model, report = convert_official_checkpoint(
            arguments.checkpoint, arguments.preset, fusion=False if arguments.no_fusion else None
        )
    print(report)
    print(f"written to {save_converted(model, report, arguments.output)}")


def synthesize(arguments: argparse.Namespace) -> None:
    """Write synthetic clips with their ground truth."""
    from .data.synthetic import write_dataset

    folder = write_dataset(
        arguments.kind,
        arguments.output,
        {arguments.split: arguments.clips},
        seed=arguments.seed,
        formats=("rows", "mp4") if arguments.rows else ("mp4",),
        progress=sys.stderr.isatty(),
    )
    print(f"{arguments.clips} clip(s) of kind {arguments.kind} in {folder}; clips.jsonl says what sounds when")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands; every one has `--help` with an example."""
    parser = _Parser(prog=PROGRAM, description="Which pixels make this sound? Audio-visual segmentation of films.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    command = _command(commands, "demo", demo, "segment the bundled clip", f"{PROGRAM} demo --output combo-demo")
    command.add_argument("--output", type=Path, default=Path("combo-demo"), help="folder, default ./combo-demo")
    command.add_argument("--device", type=_device, help="cpu, cuda:0, ...; default: the first accelerator there is")

    example = f"{PROGRAM} predict street.mp4 --output out --model my-model --masks --json"
    command = _command(commands, "predict", predict, "segment films", example)
    command.add_argument("source", nargs="+", help="film: file or http(s) URL")
    command.add_argument("--output", type=Path, required=True, help="folder for the results")
    command.add_argument("--model", help="folder or Hub id; default: the bundled weights (synthetic scenes only)")
    command.add_argument("--fps", type=_positive, default=1, help="frames per second to segment, default 1")
    command.add_argument("--batch-size", type=_positive, default=1, help="windows per batch, default 1")
    command.add_argument("--masks", action="store_true", help="also an index PNG per frame")
    command.add_argument("--json", action="store_true", help="also a JSON file: labels, scores, areas per frame")
    command.add_argument("--sheet", action="store_true", help="also a contact sheet")
    command.add_argument("--device", type=_device, help="cpu, cuda:0, ...; default: the first accelerator there is")

    text = "versions, devices, or the parts of a model"
    command = _command(commands, "info", info, text, f"{PROGRAM} info my-model")
    command.add_argument("model", nargs="?", help="folder or Hub id")

    example = f"{PROGRAM} convert model_best.pth --preset pvtv2-b5-s4 --output combo-s4"
    command = _command(commands, "convert", convert, "convert an official checkpoint", example)
    command.add_argument("checkpoint", type=Path, help="official .pth file")
    command.add_argument("--preset", required=True, help="{r50, pvtv2-b5}-{s4, ms3, avss}: what it was trained as")
    command.add_argument("--output", type=Path, required=True, help="new folder")
    command.add_argument("--no-fusion", action="store_true", help="as the release's AVSS/R50 test configuration")

    data = commands.add_parser("data", help="data sets", description="Data sets.")
    data_commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND", parser_class=_Parser)
    example = f"{PROGRAM} data synthesize --output scenes --kind ms3 --clips 4"
    command = _command(data_commands, "synthesize", synthesize, "make clips whose ground truth is known", example)
    command.add_argument("--output", type=Path, required=True, help="folder for the clips")
    command.add_argument("--kind", default="ms3", help="s4 (one source), ms3 (several), avss (with classes)")
    command.add_argument("--split", default="test", help="train, val or test")
    command.add_argument("--clips", type=_positive, default=4, help="how many, default 4")
    command.add_argument("--seed", type=int, default=0, help="other seeds give other clips, default 0")
    command.add_argument("--rows", action="store_true", help="also parquet rows with masks, to train on")
    return parser


def _command(commands: Any, name: str, run: Callable, text: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=text,
        description=f"{run.__doc__}",
        epilog=f"Example: {example}",
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run)
    return command


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _device(text: str) -> str:
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not usable here ({_reason(error)})") from error
    return text


def _unique_names(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    from .prediction import source_name

    seen: dict[str, int] = {}
    for source in sources:
        name = source_name(source)
        seen[name] = seen.get(name, 0) + 1
        yield source, name if seen[name] == 1 else f"{name}-{seen[name]}"


@contextmanager
def _named(source: Any) -> Iterator[None]:
    """Put the name of the file in front of what went wrong with it."""
    try:
        yield
    except BAD_INPUT as error:
        reason, name = _reason(error), Path(str(source)).name
        known = isinstance(error, InputError) or reason.startswith((f"{name}:", f"{source}:"))
        raise InputError(reason if known else f"{name}: {reason}") from error


def _reason(error: Exception) -> str:
    """One line, without the machinery of the exception."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(str(error.filename)).name}: {error.strerror}" if error.filename else error.strerror
    return " ".join((str(error).strip() or type(error).__name__).split("\n")[0].split())


@contextmanager
def _progress_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar over windows on a terminal; nothing where stderr is a file."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="window", disable=None, leave=False) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that temporary files go."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _quiet_transformers() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _print_files(prediction: Any) -> None:
    for kind, path in prediction.files.items():
        print(f"  {kind:8} {path}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
