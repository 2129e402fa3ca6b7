"""Evaluation of a checkpoint on a data set by the subset's official metric: `combo-hf evaluate`.

    output/settings.json     what was evaluated, and how; another evaluation is refused in the same folder
    output/per_video.jsonl   one line per video: its scores, or the areas of its classes
    output/results.json      the scores of the data set
    output/per_class.*       scores of every class (AVSS) or category (S4), as JSON and as a table
    output/sheet.png         the best and the worst videos

A run that was interrupted, by kill -9 too, is continued by the same call, and ends in the same files. Batches are cut
in the order of the data set and handed out whole: the number of processes changes no bit of what a CPU computes with
the same number of threads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from combo_hf import __version__
from combo_hf.data.collate import ClipExample
from combo_hf.evaluation.calibration import best_background, overlaps_by_weight
from combo_hf.evaluation.files import (
    check_settings,
    collect_lines,
    part_file,
    read_lines,
    write_settings,
)
from combo_hf.evaluation.prepare import Evaluation, EvaluationOptions, prepare_evaluation
from combo_hf.evaluation.report import class_table, write_sheet, write_tables
from combo_hf.evaluation.scores import ClipSet, predict_class_maps, sounding_scores, truth_of
from combo_hf.files.atomic import appending, write_text
from combo_hf.files.environment import package_versions, resolve_device, useful_workers
from combo_hf.files.folder_lock import only_run
from combo_hf.label_maps_combo import leading_class
from combo_hf.metrics import VideoScores
from combo_hf.metrics.avs_segmentation.video_records import video_iou
from combo_hf.metrics.functional import score_labels, score_object


PACKAGES = ("torch", "transformers", "datasets", "numpy", "pillow")
ProgressCallback = Callable[[int, int], None]


def evaluate_dataset(
    model: str | Path,
    data: str | Path,
    output: str | Path,
    options: EvaluationOptions | None = None,
    device: str | None = None,
    progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a data set; continues what an interrupted call began.

    Under `python -m torch.distributed.run --nproc_per_node N` (or any other starter of processes) the work is shared;
    all processes must see the same output folder.

    Args:
        model (`str` or `Path`): folder or Hub id.
        data (`str` or `Path`): folder or Hub id of a data set, see `combo_hf.data.loading.load_avsbench`.
        output (`str` or `Path`): folder, see the head of this file.
        options ([`EvaluationOptions`], *optional*)
        device (`str`, *optional*): default: the first accelerator there is, else the CPU.
        progress (*optional*): called as `progress(done, total)`, in videos.

    Returns:
        `dict`: what is in results.json.

    Raises:
        ValueError: a model that does not fit the data, no such split, a damaged clip (names it).
        FileExistsError: the folder holds something else, or an evaluation with other settings, or another process is
            evaluating there.
        FileNotFoundError, OSError: model or data cannot be found.
        ImportError: `datasets` (or, with several processes, `accelerate`) is not installed.
    """
    output = Path(output)
    with _process_group(device) as (rank, world, place, wait):
        evaluation = prepare_evaluation(model, data, options or EvaluationOptions(), place)
        check_settings(output, evaluation.settings)
        wait()  # nobody writes before everybody has looked
        # A second evaluation would take the lines away that this one is writing.
        with only_run(output) if rank == 0 else nullcontext():
            if rank == 0:
                if not check_settings(output, evaluation.settings):
                    write_settings(output, evaluation.settings)
                collect_lines(output, evaluation.video_ids)
            wait()
            done = read_lines(output)
            wait()  # everybody has the same list before the first line is added
            _evaluate_rest(evaluation, output, done, rank, world, progress)
            wait()
            results = _report(evaluation, output) if rank == 0 else {}
            wait()
            return results or json.loads((output / "results.json").read_text(encoding="utf-8"))


class _Batches(torch.utils.data.Dataset[list[ClipExample]]):
    """Lists of clips: one item per batch, so that a loader may prepare several at once."""

    def __init__(self, clips: ClipSet, batches: Sequence[range]) -> None:
        self.clips, self.batches = clips, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[ClipExample]:
        return [self.clips[position] for position in self.batches[index]]


def score_clip(evaluation: Evaluation, index: int, example: ClipExample, class_maps: torch.Tensor) -> dict[str, Any]:
    """The line of one video: video_id, category, num_frames, M_J, M_F, sounding_pixels; AVSS: iou and areas, too."""
    name = evaluation.video_ids[index]
    head: dict[str, Any] = {"video_id": name, "category": evaluation.categories[index]}
    if not len(class_maps):
        return head | {"num_frames": 0}
    target = example.masks.to(class_maps.device)
    weight = evaluation.settings["background_weight"]
    record = head | score_object(name, sounding_scores(class_maps), truth_of(target))
    record["M_J_by_background"] = overlaps_by_weight(class_maps, target, weight)
    if evaluation.semantic:
        areas = score_labels(name, leading_class(class_maps, 1)[0], target, len(evaluation.labels))
        record |= {"iou": video_iou(areas)} | areas
    return record


def _evaluate_rest(
    evaluation: Evaluation,
    output: Path,
    done: dict[str, Any],
    rank: int,
    world: int,
    progress: ProgressCallback | None,
) -> None:
    """Score what is missing; this process takes every `world`-th batch."""
    missing = [batch for batch in evaluation.batches() if any(evaluation.video_ids[i] not in done for i in batch)]
    mine, total = missing[rank::world], len(evaluation.video_ids)
    finished = len(done)
    workers = useful_workers(min(evaluation.options.num_workers, len(mine)))
    if progress is not None:
        progress(finished, total)
    loader = torch.utils.data.DataLoader(_Batches(evaluation.clips, mine), batch_size=None, num_workers=workers)
    with appending(part_file(output, rank)) as file:
        for batch, examples in zip(mine, loader, strict=True):
            maps = predict_class_maps(evaluation.model, examples)
            for index, example, class_maps in zip(batch, examples, maps, strict=True):
                if evaluation.video_ids[index] not in done:
                    record = score_clip(evaluation, index, example, class_maps)
                    file.write(json.dumps(record).encode() + b"\n")
                    finished += world
            file.flush()
            if progress is not None:
                progress(min(finished, total), total)


def _report(evaluation: Evaluation, output: Path) -> dict[str, Any]:
    """Put the lines together and write what is made of them."""
    records = collect_lines(output, evaluation.video_ids)
    lost = [name for name in evaluation.video_ids if name not in records]
    if lost:
        raise ValueError(
            f"{len(lost)} videos have no line ({lost[0]}, ...): all processes must see the same output folder, and no "
            f"second evaluation may use it; run it again to score them ({output})."
        )
    scored = [record for record in records.values() if record["num_frames"]]
    if not scored:
        raise ValueError(f"no frame of split {evaluation.options.split!r} is annotated: there is nothing to score.")
    options = evaluation.options
    scores = VideoScores().extend(scored).compute()
    if evaluation.semantic:
        classes = VideoScores(len(evaluation.labels), options.protocol).extend(scored).compute()
        scores = classes | {"sounding_or_not": {name: scores[name] for name in ("M_J", "M_F")}}
    best, by_weight = best_background([record["M_J_by_background"] for record in scored])
    table = class_table(evaluation.labels, scored, scores, evaluation.semantic)
    write_tables(output, table)
    if options.sheet:
        write_sheet(evaluation, scored, output / "sheet.png")
    results = {
        "model": evaluation.settings["model"],
        "data": evaluation.settings["data"],
        "split": options.split,
        "subset": options.subset,
        "metric": "miou and fscore" if evaluation.semantic else "M_J and M_F",
        "protocol": options.protocol if evaluation.semantic else "avsbench",
        "scores": scores,
        # M_J is of the model's own weight; a weight is for choosing on validation videos, never on those of a test
        "background_weight": {
            "of_the_model": evaluation.settings["background_weight"],
            "best": best,
            "M_J_by_weight": {str(weight): value for weight, value in by_weight.items()},
        },
        "videos_without_annotation": len(records) - len(scored),
        "settings": evaluation.settings,
        "versions": {"combo-hf": __version__} | package_versions(PACKAGES),
    }
    write_text(output / "results.json", json.dumps(results, indent=2) + "\n")
    return results


@contextmanager
def _process_group(device: str | None) -> Iterator[tuple[int, int, torch.device, Callable[[], None]]]:
    """Rank, number of processes, device, and a function that waits for all; one process needs no group."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield 0, 1, resolve_device(device), lambda: None
        return
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError("several processes need accelerate: pip install 'combo-hf[train]'") from error
    ours = not PartialState._shared_state
    state = PartialState(cpu=resolve_device(device).type == "cpu")
    try:
        yield state.process_index, state.num_processes, state.device, state.wait_for_everyone
    finally:
        if ours:
            state.destroy_process_group()
