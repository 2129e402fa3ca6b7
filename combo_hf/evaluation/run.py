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

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from combo_hf import __version__
from combo_hf.evaluation.calibration import best_background, overlaps_by_weight
from combo_hf.evaluation.files import (
    check_settings,
    collect_lines,
    fingerprint_ids,
    part_file,
    read_lines,
    write_settings,
)
from combo_hf.evaluation.options import EvaluationOptions
from combo_hf.evaluation.other_sounds import RowsWithOtherSounds
from combo_hf.evaluation.scores import predict_class_maps, sounding_scores, truth_of
from combo_hf.files.atomic import write_text
from combo_hf.files.environment import fingerprint_weights, package_versions, resolve_device, useful_workers
from combo_hf.files.folder_lock import only_run
from combo_hf.metrics.avs_segmentation.video_records import object_scores, semantic_scores, video_iou
from combo_hf.metrics.functional import score_labels, score_object


VERSION = 2  # raise when what a line holds changes
OBJECT_SUBSETS = ("s4", "ms3")
PACKAGES = ("torch", "transformers", "datasets", "numpy", "pillow")
ProgressCallback = Callable[[int, int], None]


@dataclass
class Evaluation:
    """A prepared evaluation: what [`prepare_evaluation`] returns.

    Attributes:
        options: what was asked for; subset and scores filled in.
        settings: what the lines depend on; recorded in the output folder.
        model: in evaluation mode, on its device.
        clips: data set of [`ClipExample`].
        video_ids, categories: of the clips, in order.
        labels: names of the model's classes.
    """

    options: EvaluationOptions
    settings: dict[str, Any]
    model: torch.nn.Module
    clips: Any
    video_ids: list[str]
    categories: list[str]
    labels: list[str]

    @property
    def semantic(self) -> bool:
        return self.options.scores == "semantic"

    def batches(self) -> list[range]:
        """Indices of the clips that go through the model together; the same whatever is done already."""
        size, total = self.options.batch_size, len(self.video_ids)
        return [range(first, min(first + size, total)) for first in range(0, total, size)]


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
    with _process_group(device) as (rank, world, device, wait):
        evaluation = prepare_evaluation(model, data, options or EvaluationOptions(), device)
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


def prepare_evaluation(
    model: str | Path, data: str | Path, options: EvaluationOptions, device: str | torch.device = "cpu"
) -> Evaluation:
    """Load model and data and check that they fit.

    Raises:
        ValueError, FileNotFoundError, OSError, ImportError: see [`evaluate_dataset`].
    """
    from combo_hf import resolve_model
    from combo_hf.data.loading import load_avsbench
    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation

    folder = resolve_model(model)
    rows = load_avsbench(data, options.split, subset=options.subset)
    rows = rows if options.limit is None else rows.select(range(min(options.limit, len(rows))))
    if not len(rows):
        raise ValueError(f"{data}: split {options.split!r} has no videos.")
    options = _fill_in(options, rows)
    network = ComboForAudioVisualSegmentation.from_pretrained(folder).to(device).eval()
    labels = [network.config.id2label[index] for index in range(network.config.num_labels)]
    ids = list(rows["video_id"])
    categories = [name or "" for name in rows["category"]] if "category" in rows.features else [""] * len(ids)
    _check_ids(ids)
    if options.scores == "semantic":
        _check_labels(labels, categories)
    # class ids that "sounding or not" takes: all, if rows say which subset they are of and so what 255 means
    most_labels = 255 if "subset" in rows.features else 2
    if options.other_audio:
        rows = RowsWithOtherSounds(rows, categories)
    clips = _clips(rows, most_labels, network, folder, options)
    settings = {
        "version": VERSION,
        "model": str(model),
        "weights": fingerprint_weights(network),
        "data": str(data),
        "split": options.split,
        "subset": options.subset,
        "videos": [len(ids), fingerprint_ids(ids)],
        "data_bytes": getattr(getattr(rows, "data", None), "nbytes", None),
        "scores": options.scores,
        "image_size": network.config.image_size,
        "background_weight": network.config.background_weight,
        "batch_size": options.batch_size,
        "silence_audio": options.silence_audio,
        "other_audio": options.other_audio,
        "blank_maskige": options.blank_maskige,
        "device": torch.device(device).type,
    }
    return Evaluation(options, settings, network, clips, ids, categories, labels)


class PreparedClips(torch.utils.data.Dataset):
    """Clips for the model, with black Maskiges if wanted; an error names its clip."""

    def __init__(self, clips: Any, blank_maskige: bool) -> None:
        self.clips, self.blank_maskige = clips, blank_maskige

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Any:
        example = self.clips[index]
        if self.blank_maskige:
            return dataclasses.replace(example, maskiges=torch.zeros_like(example.frames))
        return example


class _Batches(torch.utils.data.Dataset):
    """Lists of clips: one item per batch, so that a loader may prepare several at once."""

    def __init__(self, clips: Any, batches: Sequence[range]) -> None:
        self.clips, self.batches = clips, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Any]:
        return [self.clips[position] for position in self.batches[index]]


def score_clip(evaluation: Evaluation, index: int, example: Any, class_maps: torch.Tensor) -> dict[str, Any]:
    """The line of one video: video_id, category, num_frames, M_J, M_F, sounding_pixels; AVSS: iou and areas, too."""
    name = evaluation.video_ids[index]
    head = {"video_id": name, "category": evaluation.categories[index]}
    if not len(class_maps):
        return head | {"num_frames": 0}
    target = example.masks.to(class_maps.device)
    weight = evaluation.settings["background_weight"]
    record = head | score_object(name, sounding_scores(class_maps), truth_of(target))
    record["M_J_by_background"] = overlaps_by_weight(class_maps, target, weight)
    if evaluation.semantic:
        areas = score_labels(name, class_maps.argmax(1), target, len(evaluation.labels))
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
    with open(part_file(output, rank), "ab") as file:
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
    from combo_hf.evaluation.report import class_table, write_sheet, write_tables

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
    scores = object_scores(scored)
    if evaluation.semantic:
        classes = semantic_scores(scored, len(evaluation.labels), options.protocol)
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


def _fill_in(options: EvaluationOptions, rows: Any) -> EvaluationOptions:
    """Subset and scores, from the data where they were not named."""
    found = sorted(set(rows["subset"])) if "subset" in rows.features else []
    subset = options.subset or (found[0] if len(found) == 1 else None)
    if subset is None:
        raise ValueError(f"the data set holds the subsets {found}; name one: s4, ms3 or avss.")
    scores = options.scores
    if scores == "auto":
        scores = "object" if subset in OBJECT_SUBSETS else "semantic"
    return dataclasses.replace(options, subset=subset, scores=scores)


def _check_ids(ids: list[str]) -> None:
    if len(set(ids)) != len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})[:3]
        raise ValueError(f"the data set has several videos of one id: {', '.join(twice)}; every video needs its own.")


def _check_labels(labels: list[str], categories: list[str]) -> None:
    """Refuse a model that knows none of the data set's classes; single ids are checked as clips are read."""
    if len(labels) == 2:
        raise ValueError(
            f"the model tells only {labels[0]!r} from {labels[1]!r}: it has no classes to score. Use a model with "
            'classes, or scores="object".'
        )
    wanted = {name for category in categories for name in category.split(",") if name}
    if wanted and not wanted & set(labels):
        raise ValueError(
            f"the model's {len(labels)} classes ({', '.join(labels[:4])}, ...) are not those of the data set "
            f"({', '.join(sorted(wanted)[:4])}, ...)."
        )


def _clips(
    rows: Any, most_labels: int, network: torch.nn.Module, folder: str, options: EvaluationOptions
) -> PreparedClips:
    from combo_hf.data.loading import AvsbenchClips
    from combo_hf.processing_combo import ComboProcessor

    config = network.config
    use_maskige = config.use_maskige and not options.blank_maskige
    generator = None
    if use_maskige:
        try:
            processor = ComboProcessor.from_pretrained(folder)
            generator = processor.proposal_generator if processor.proposals_agreed else None  # then of rows only
        except OSError:  # weights without a processor
            generator = ComboProcessor().proposal_generator
    clips = AvsbenchClips(
        rows,
        image_size=config.image_size,
        num_labels=config.num_labels if options.scores == "semantic" else most_labels,
        use_maskige=use_maskige,
        proposal_generator=generator,
        silence_audio=options.silence_audio,
    )
    return PreparedClips(clips, config.use_maskige and options.blank_maskige)


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
