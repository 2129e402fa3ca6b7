"""`combo-hf evaluate`: scores of a checkpoint on a data set."""

from __future__ import annotations

import argparse
import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from combo_hf import resolve_model
from combo_hf.commands.common import DEVICE, PROGRAM, add_command, device, is_first, positive
from combo_hf.files.progress import Progress


SHOWN = ("M_J", "M_F", "miou", "fscore", "miou_present", "fscore_present", "miou_nobg", "fscore_nobg")


def check(arguments: argparse.Namespace) -> None:
    """Whether there is such a model, and such a data set or the name of one."""
    resolve_model(arguments.model)
    if not Path(arguments.data).exists() and arguments.data.count("/") != 1:
        raise FileNotFoundError(f"{arguments.data} is no folder; give one of `combo-hf data build`, or a Hub id.")


def evaluate(arguments: argparse.Namespace) -> int:
    """Evaluate a checkpoint by the subset's official metric; run it again to continue after an interruption."""
    from combo_hf.evaluation.prepare import EvaluationOptions
    from combo_hf.evaluation.processes import evaluate_in_processes
    from combo_hf.evaluation.run import evaluate_dataset

    options = EvaluationOptions(**{name: getattr(arguments, name) for name in EvaluationOptions.__dataclass_fields__})
    several = arguments.num_processes > 1
    run = partial(evaluate_in_processes, arguments.num_processes) if several else evaluate_dataset
    _quiet_datasets()
    places = (arguments.model, arguments.data, arguments.output)
    try:
        with contextlib.closing(Progress("evaluation", "video", shown=is_first())) as progress:
            results = run(*places, options, arguments.device, progress=progress)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command continues in {arguments.output}", file=sys.stderr)
        return 130
    if is_first():
        _print_results(results, arguments.output, options.sheet)
    return 0


def _print_results(results: dict[str, Any], output: Path, sheet: int) -> None:
    scores = results["scores"]
    print(f"{results['model']} on {results['data']}, {results['subset']} {results['split']}, "
          f"{scores['num_videos']} videos, protocol {results['protocol']}, in percent:")  # fmt: skip
    for name in SHOWN:
        if name in scores:
            print(f"  {name:15} {100 * scores[name]:6.2f}")
    background = results["background_weight"]
    overlap = background["M_J_by_weight"]
    print(f"  M_J by weight of the background: {100 * overlap['1.0']:.2f} at 1.0 (the release), best here "
          f"{100 * overlap[str(background['best'])]:.2f} at {background['best']}")  # fmt: skip
    print(f"written to {output}: results.json, per_class.md, per_video.jsonl"
          f"{', sheet.png' if sheet else ''}")  # fmt: skip


def _quiet_datasets() -> None:
    """No bars in a log file."""
    if sys.stderr.isatty():
        return
    with contextlib.suppress(ImportError):  # said clearly where it is needed
        import datasets

        datasets.disable_progress_bars()


def register(commands: Any) -> None:
    """Add the sub-command."""
    example = f"{PROGRAM} evaluate my-model avsbench-s4 --split test --output scores/s4"
    command = add_command(commands, "evaluate", evaluate, "scores of a model on a data set", example, check)
    command.add_argument("model", help="folder or Hub id")
    command.add_argument("data", help="data set: folder of `data build` or `data synthesize --rows`, or Hub id")
    command.add_argument("--output", type=Path, default=Path("combo-evaluation"), help="default ./combo-evaluation")
    command.add_argument("--split", default="test", help="train, val or test, default test")
    command.add_argument("--subset", help="s4, ms3 or avss; needed where the data set has several")
    command.add_argument("--scores", default="auto", help="object (M_J, M_F) or semantic; default: by the subset")
    command.add_argument("--protocol", default="avsbench", help="of semantic scores: avsbench (default) or dataset")
    command.add_argument("--batch-size", type=positive, default=1, help="clips per batch, default 1")
    command.add_argument("--num-workers", type=int, default=0, help="processes that prepare clips, default 0")
    command.add_argument("--num-processes", type=positive, default=1, help="processes that share the work, default 1")
    command.add_argument("--limit", type=positive, help="only the first so many videos")
    command.add_argument("--silence-audio", action="store_true", help="ablation: silence in place of the sound")
    command.add_argument("--other-audio", action="store_true", help="ablation: each clip with another clip's sound")
    command.add_argument("--blank-maskige", action="store_true", help="ablation: black Maskiges")
    text = "so many best and worst videos are drawn in sheet.png, default 4"
    command.add_argument("--sheet-videos", "--sheet", dest="sheet", type=int, default=4, metavar="N", help=text)
    command.add_argument("--device", type=device, help=DEVICE)
