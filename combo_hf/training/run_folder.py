"""The folder of a run: what is kept in it, and how a run is picked up from it.

    recipe.yaml     what was run
    metrics.jsonl   one line per `log_every` steps, and one per evaluation
    best, last      checkpoints that `from_pretrained` reads
    state           what a resumed run continues from
    logs            what TensorBoard reads, if it was asked for

Folders are written under another name and then renamed: an interruption leaves the old or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from combo_hf.files.atomic import recover_folder, remove, removed_on_failure, replacing_folder
from combo_hf.training.arguments import FREE_ON_RESUME, TrainingRecipe
from combo_hf.training.engine import from_main
from combo_hf.training.reporting import Reporter
from combo_hf.training.state import (
    commit_state,
    has_checkpoint,
    newest_state,
    write_json,
)
from combo_hf.training.step import Learner


if TYPE_CHECKING:
    from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
    from combo_hf.processing_combo import ComboProcessor

CHECKPOINTS = ("best", "last")
PARTIAL_STATE = ".partial-state"
MEAN_WEIGHTS = "mean_weights.safetensors"


@dataclass
class Standing:
    """Where a run stands; saved with the state.

    Attributes:
        clips: in the training set.
        clips_per_step: of all processes together.
        step: optimizer steps done.
        epoch, rows: so many rows of the epoch's order were handed out, see `batches.py`.
        evaluated: step of the last evaluation.
        validation: its scores.
        best: the best value of the metric that decides.
    """

    clips: int
    clips_per_step: int
    step: int = 0
    epoch: int = 0
    rows: int = 0
    evaluated: int = 0
    validation: dict[str, Any] = field(default_factory=dict)
    best: float | None = None


def check_output(output: Path, resume: bool) -> None:
    """Raise `FileExistsError` or `FileNotFoundError` where a folder does not fit what is to be done with it."""
    if resume and not (output / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{output} holds no run: nothing to resume.")
    if not resume and has_checkpoint(output):
        raise FileExistsError(f"{output} holds a run; continue it (resume) or choose another folder.")


class RunFolder:
    """The files of a run; all processes call its methods, the main one writes.

    Args:
        path (`Path`)
        learner ([`Learner`]): what a state is made of.
        reporter ([`Reporter`]): its unfinished line belongs to a state, too.
        processor ([`ComboProcessor`], *optional*): saved with every checkpoint.
    """

    def __init__(
        self, path: Path, learner: Learner, reporter: Reporter, processor: ComboProcessor | None = None
    ) -> None:
        self.path, self.learner, self.reporter, self.processor = path, learner, reporter, processor

    def begin(self, recipe: TrainingRecipe, new: Standing, resume: bool) -> Standing:
        """The files of a new run, or back to the newest state of an old one.

        Args:
            recipe ([`TrainingRecipe`]): of this run.
            new ([`Standing`]): of a run that begins.
            resume (`bool`): go on where there is a state.

        Raises:
            ValueError: the old run was another one, and has a checkpoint.
        """
        accelerator, progress = self.learner.accelerator, new
        main = accelerator.is_main_process
        if resume:
            differences = TrainingRecipe.from_yaml(self.path / "recipe.yaml").differences(recipe, FREE_ON_RESUME)
            if differences and has_checkpoint(self.path):
                raise ValueError(f"{self.path} was begun with another recipe: {'; '.join(differences)} (old, new).")
            for name in CHECKPOINTS if main else ():
                recover_folder(self.path / name)
            state = from_main(accelerator, newest_state(self.path / "state") if main else None)
            if state is not None:
                progress = self._load_state(state, new, recipe.max_steps)
        if main:
            self.path.mkdir(parents=True, exist_ok=True)
            recipe.save(self.path / "recipe.yaml")
            remove(self.path / PARTIAL_STATE)
        accelerator.wait_for_everyone()
        self.reporter.start(progress.step)
        return progress

    def save_checkpoints(self, model: ComboForAudioVisualSegmentation, names: Iterable[str]) -> None:
        """Write a model, and its processor, as `best`, `last` or both."""
        for name in names:
            with replacing_folder(self.path / name) as folder:
                model.save_pretrained(folder)
                if self.processor is not None:
                    self.processor.save_pretrained(folder)

    def save_state(self, progress: Standing) -> None:
        """All processes write into one folder, which the main one then seals and moves to its place."""
        accelerator, temporary = self.learner.accelerator, self.path / PARTIAL_STATE
        if accelerator.is_main_process:
            remove(temporary)
            (self.path / "state").mkdir(exist_ok=True)
        with removed_on_failure(temporary, f"the state in {self.path}"):
            accelerator.wait_for_everyone()
            accelerator.save_state(str(temporary))
            if accelerator.is_main_process:
                others = {"scheduler": self.learner.scheduler.state_dict(), "log": self.reporter.state_dict()}
                write_json(temporary / "progress.json", {"progress": asdict(progress), **others})
                if self.learner.average is not None:
                    save_file(self.learner.average.state_dict(), temporary / MEAN_WEIGHTS)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                commit_state(temporary, self.path / "state", progress.step)
        accelerator.wait_for_everyone()

    def _load_state(self, state: Path, new: Standing, max_steps: int) -> Standing:
        values = json.loads((state / "progress.json").read_text(encoding="utf-8"))
        saved = values.get("progress", {})
        if saved.keys() != {part.name for part in fields(Standing)}:
            raise ValueError(f"{self.path} was begun by another version of combo-hf: finish it with that one.")
        progress = Standing(**saved)
        if progress.clips != new.clips:
            raise ValueError(f"{self.path} was begun with {progress.clips} training clips, now there are {new.clips}.")
        if progress.clips_per_step != new.clips_per_step:
            raise ValueError(
                f"{self.path} was begun with {progress.clips_per_step} clips a step, now there are "
                f"{new.clips_per_step} (clips_per_batch x accumulation_steps x processes): change one of the factors."
            )
        if progress.step > max_steps:
            raise ValueError(f"{self.path} has done {progress.step} steps, max_steps is {max_steps}.")
        learner = self.learner
        learner.accelerator.load_state(str(state))
        schedule = learner.scheduler
        schedule.load_state_dict(values["scheduler"])
        groups = zip(learner.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, rate, factor in groups:  # max_steps may be another one
            group["lr"] = rate * factor(schedule.last_epoch)
        self.reporter.load_state_dict(values["log"])
        if learner.average is not None:
            learner.average.load_state_dict(load_file(state / MEAN_WEIGHTS))
        return progress
