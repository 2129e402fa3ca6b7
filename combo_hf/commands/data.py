"""`combo-hf data ...`: data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from combo_hf.commands.common import PROGRAM, add_command, add_group, positive
from combo_hf.files.wording import visible


SPLITS = ("train", "val", "test")


def synthesize(arguments: argparse.Namespace) -> None:
    """Write synthetic clips with their ground truth."""
    splits = arguments.split or (SPLITS if arguments.layout == "official" else ("test",))
    counts = dict.fromkeys(splits, arguments.clips)
    if arguments.layout == "official":
        from combo_hf.data.synthetic.official_folders import write_official

        folder = write_official(arguments.output, arguments.kind, counts, arguments.seed, maskiges=arguments.maskiges)
        print(f"{sum(counts.values())} clip(s) of kind {arguments.kind} in the folders of AVSBench: {folder}")
        return
    from combo_hf.data.synthetic.dataset import write_dataset

    folder = write_dataset(
        arguments.kind,
        arguments.output,
        counts,
        seed=arguments.seed,
        formats=("rows", "mp4") if arguments.rows else ("mp4",),
        maskiges=arguments.maskiges,
    )
    print(f"{sum(counts.values())} clip(s) of kind {arguments.kind} in {folder}; clips.jsonl says what sounds when")


def build(arguments: argparse.Namespace) -> None:
    """Write a subset of AVSBench (--subset, --root), or your own videos with masks (--from), as parquet, to be read by
    `datasets.load_dataset(OUTPUT, SUBSET)`. A run that was interrupted or killed goes on where it was when it is
    started again. docs/own-data.md says how a folder of your own has to look."""
    from combo_hf.data.avsbench import build_dataset, push_dataset

    if arguments.own is not None:
        _build_own(arguments)
        return
    if arguments.subset is None or arguments.root is None:
        raise ValueError("wanted --subset and --root (AVSBench), or --from (your own videos).")
    if arguments.push_to_hub and not arguments.private:
        raise ValueError("--push-to-hub needs --private: AVSBench may not be handed on.")
    names = ("root", "subset", "output", "splits", "num_processes", "rows_per_shard", "maskiges", "processed")
    report = build_dataset(
        **{name: getattr(arguments, name) for name in names},
        on_error="skip" if arguments.skip_broken else "raise",
        resume=not arguments.restart,
    )
    counts = ", ".join(f"{split} {rows}" for split, rows in report.rows.items())
    print(f"{report.subset}: {counts} rows in {report.folder} ({report.written} files written, {report.kept} kept)")
    for name, why in report.skipped:
        print(visible(f"left out {name}: {why}"))
    if arguments.push_to_hub:
        print(push_dataset(report.folder, arguments.push_to_hub, private=arguments.private))


def _build_own(arguments: argparse.Namespace) -> None:
    from combo_hf.data.own import OwnSettings, build_own

    if arguments.subset is not None or arguments.root is not None or arguments.push_to_hub:
        raise ValueError("--from takes your own videos; --subset, --root and --push-to-hub belong to AVSBench.")
    report = build_own(
        arguments.own,
        arguments.output,
        OwnSettings(arguments.clip_seconds, arguments.max_side),
        num_processes=arguments.num_processes,
        on_error="skip" if arguments.skip_broken else "raise",
        resume=not arguments.restart,
    )
    counts = ", ".join(f"{split} {rows}" for split, rows in report.rows.items())
    print(f"own: {counts} rows in {report.folder} ({report.written} files written, {report.kept} kept)")
    for name, why in report.skipped:
        print(visible(f"left out {name}: {why}"))


def check(arguments: argparse.Namespace) -> int:
    """List what is missing, extra or odd in the folders of AVSBench, or in one of your own videos with masks. Exit
    code 0: nothing that matters, 1: errors (or, with --strict, anything at all), 2: neither is there."""
    from combo_hf.data.avsbench import check_dataset, format_findings
    from combo_hf.data.own_check import check_own
    from combo_hf.data.own_layout import is_own_folder

    if arguments.subset in (None, "own") and is_own_folder(arguments.root):
        findings = check_own(arguments.root, arguments.num_processes, decode=not arguments.quick)
    else:
        findings = check_dataset(
            arguments.root,
            arguments.subset,
            num_processes=arguments.num_processes,
            processed=arguments.processed,
            decode=not arguments.quick,
        )
    errors = sum(finding.serious for finding in findings)
    if findings:
        print(format_findings(findings, arguments.all))
    print(f"{errors} error(s), {len(findings) - errors} note(s)")
    return 1 if errors or (arguments.strict and findings) else 0


def compose(arguments: argparse.Namespace) -> None:
    """Make clips of your own photographs with masks, sounds and backgrounds: one, two or none of what is seen sounds.
    Folders: objects/CLASS/NAME.jpg with NAME.png (mask), sounds/CLASS/NAME.ogg, backgrounds/NAME.jpg; sounds in
    folders that begin with "_" are of no class."""
    from combo_hf.data.compose import CASES, STAGES, ComposeRules
    from combo_hf.data.compose_dataset import ComposeSettings, compose_dataset

    rules = ComposeRules(
        _shares(arguments.stage, STAGES),
        _shares(arguments.case, CASES),
        arguments.motion,
        arguments.microphone,
        arguments.grading,
    )
    settings = ComposeSettings(
        objects=str(arguments.objects),
        sounds=str(arguments.sounds),
        backgrounds=None if arguments.backgrounds is None else str(arguments.backgrounds),
        splits_from=None if arguments.splits_from is None else str(arguments.splits_from),
        kind=arguments.kind,
        clips=_counts(arguments.split, arguments.clips),
        seed=arguments.seed,
        size=arguments.size,
        num_frames=arguments.frames,
        video_height=arguments.video_height or 0,
        rules=rules,
    )
    folder = compose_dataset(settings, arguments.output, arguments.num_processes)
    print(f"{sum(settings.clips.values())} clip(s) of kind {settings.kind} in {folder}; clips.jsonl says what sounds")


def _shares(entries: list[str] | None, known: dict[str, float]) -> dict[str, float]:
    """`name=share` entries; what they do not name has a share of 0. Without entries the usual shares."""
    if not entries:
        return dict(known)
    shares = {}
    for entry in entries:
        name, _, share = entry.partition("=")
        try:
            shares[name] = float(share)
        except ValueError as error:
            raise ValueError(f"{entry!r}: wanted NAME=SHARE, such as {next(iter(known))}=0.5.") from error
    return shares


def _counts(splits: list[str], clips: list[int]) -> dict[str, int]:
    if len(clips) not in (1, len(splits)):
        raise ValueError(f"--clips: wanted one number, or one for each of {splits}, got {clips}.")
    return dict(zip(splits, clips if len(clips) == len(splits) else clips * len(splits), strict=True))


def register(commands: Any) -> None:
    """Add the sub-commands."""
    group = add_group(commands, "data", "data sets")
    _register_synthesize(group)
    _register_compose(group)
    _register_build(group)
    _register_check(group)


def _register_synthesize(group: Any) -> None:
    example = f"{PROGRAM} data synthesize --output scenes --kind ms3 --clips 4"
    command = add_command(
        group, "synthesize", synthesize, "make clips whose ground truth is known", example, light=True
    )
    command.add_argument("--output", type=Path, required=True, help="folder for the clips")
    command.add_argument("--kind", default="ms3", help="s4 (one source), ms3 (several), avss (with classes)")
    command.add_argument(
        "--split", nargs="+", help="train, val, test, or several; default test, with --layout official all three"
    )
    command.add_argument("--clips", type=positive, default=4, help="how many in each split, default 4")
    command.add_argument("--seed", type=int, default=0, help="other seeds give other clips, default 0")
    command.add_argument("--rows", action="store_true", help="also parquet rows with masks, to train on")
    command.add_argument(
        "--layout", choices=("own", "official"), default="own", help="official: the folders and csv files of AVSBench"
    )
    text = "also Maskiges, of this proposal model: superpixels"
    command.add_argument("--proposals", "--maskiges", dest="maskiges", metavar="NAME", help=text)


def _register_compose(group: Any) -> None:
    example = (
        f"{PROGRAM} data compose --objects photos --sounds sounds --backgrounds rooms --output clips --clips 200 20"
    )
    command = add_command(group, "compose", compose, "clips of your own photographs and sounds", example, light=True)
    command.add_argument("--objects", type=Path, required=True, help="folder: CLASS/NAME.jpg, NAME.png the mask")
    command.add_argument("--sounds", type=Path, required=True, help="folder: CLASS/NAME.ogg, flac, wav or mp3")
    command.add_argument("--backgrounds", type=Path, help="folder of pictures with none of the classes")
    command.add_argument(
        "--splits-from", type=Path, metavar="CSV", help="columns id, split; default by a hash of names"
    )
    command.add_argument("--output", type=Path, required=True, help="folder for the data set")
    command.add_argument("--kind", default="avss", help="s4, ms3 or avss; default avss: masks hold class indices")
    command.add_argument("--split", nargs="+", choices=SPLITS, default=["train", "val"], metavar="SPLIT")
    command.add_argument("--clips", nargs="+", type=positive, default=[100], help="one number, or one for each split")
    command.add_argument("--frames", type=positive, default=5, help="seconds of a clip, default 5")
    command.add_argument("--size", type=positive, default=224, help="pixels of a side, default 224")
    command.add_argument("--seed", type=int, default=0, help="other seeds give other clips, default 0")
    command.add_argument("--stage", nargs="+", metavar="NAME=SHARE", help="photograph, side_by_side, cut_outs, empty")
    command.add_argument("--case", nargs="+", metavar="NAME=SHARE", help="one, two, absent, other, silence")
    for name, text in (("motion", "of camera and objects"), ("microphone", "rooms, noise"), ("grading", "of colours")):
        command.add_argument(f"--{name}", type=float, default=1.0, metavar="0..1", help=f"{text}, default 1")
    command.add_argument("--video-height", type=positive, metavar="PIXELS", help="also mp4 files of this height")
    command.add_argument("--num-processes", type=positive, default=1, help="default 1")


def _register_build(group: Any) -> None:
    example = f"{PROGRAM} data build --subset s4 --root AVSBench --output avsbench --num-processes 4"
    command = add_command(
        group, "build", build, "AVSBench folders, or your own videos, to parquet", example, light=True
    )
    command.add_argument("--subset", help="of AVSBench: s4, ms3 or avss")
    command.add_argument("--root", type=Path, help="folder of AVSBench, or of the subset")
    command.add_argument("--from", dest="own", type=Path, metavar="FOLDER", help="your own videos with masks")
    command.add_argument("--clip-seconds", type=positive, default=5, help="with --from: length of a clip, default 5")
    command.add_argument("--max-side", type=positive, default=1024, help="with --from: larger pictures are reduced")
    command.add_argument("--output", type=Path, required=True, help="folder to write to; may hold other subsets")
    command.add_argument(
        "--split",
        "--splits",
        dest="splits",
        nargs="+",
        choices=SPLITS,
        default=SPLITS,
        metavar="SPLIT",
        help="default all",
    )
    command.add_argument("--num-processes", type=positive, default=1, help="default 1")
    command.add_argument("--rows-per-shard", type=positive, help="clips in a file; default 512 (s4) or 128")
    command.add_argument(
        "--maskiges",
        choices=("auto", "yes", "no"),
        default="auto",
        help="auto: where there are any; yes: all or error",
    )
    command.add_argument("--processed", action="store_true", help="avss: the 224 x 224 pictures, not the native ones")
    command.add_argument("--skip-broken", action="store_true", help="leave damaged clips out, and list them")
    command.add_argument("--restart", action="store_true", help="do not go on with an earlier run")
    command.add_argument("--push-to-hub", metavar="REPO", help="then upload to this data set repository")
    command.add_argument("--private", action="store_true", help="required with --push-to-hub")


def _register_check(group: Any) -> None:
    command = add_command(
        group,
        "check",
        check,
        "what is wrong with AVSBench folders, or your own",
        f"{PROGRAM} data check AVSBench",
        light=True,
    )
    command.add_argument("root", type=Path, help="folder of AVSBench, of a subset, or of your own videos")
    command.add_argument("--subset", help="s4, ms3, avss or own; default all that are there")
    command.add_argument("--num-processes", type=positive, default=1, help="default 1")
    command.add_argument("--processed", action="store_true", help="avss: look at the 224 x 224 pictures")
    command.add_argument("--quick", action="store_true", help="names and sizes only, decode nothing")
    command.add_argument("--all", action="store_true", help="every finding, not two of a kind")
    command.add_argument("--strict", action="store_true", help="exit code 1 for notes as well")
