"""From a recipe to a whole run: build, train, and push if asked."""

from __future__ import annotations

from pathlib import Path

from combo_hf.training.arguments import TrainingRecipe
from combo_hf.training.engine import join_processes, only_run_of_all
from combo_hf.training.loop import TrainingResult, check_output, train
from combo_hf.training.sources import build_data, label_names
from combo_hf.training.start import build_model, build_processor, freeze


def run_recipe(recipe: TrainingRecipe, output: str | Path, resume: bool = False, cpu: bool = False) -> TrainingResult:
    """Everything: build, train, and push if asked.

    Args:
        recipe ([`TrainingRecipe`])
        output (`str` or `Path`), resume (`bool`), cpu (`bool`): see [`train`].

    Raises:
        As [`train`], [`build_model`] and [`build_data`]; of a push, as [`check_access`] before the training and
        [`push_checkpoint`] after it.
    """
    output = Path(output)
    check_output(output, resume)  # before clips are made
    processes = join_processes(cpu)
    with only_run_of_all(processes, output, lambda: check_output(output, resume)):
        if recipe.push_to_hub is not None and processes.is_main_process:
            from combo_hf.publishing import check_access

            check_access(recipe.push_to_hub, private=recipe.push_private)  # not after days of training
        model = build_model(recipe.model, recipe.seed, **label_names(recipe))
        # One process makes the clips and fills the cache, from which the others read them.
        with processes.local_main_process_first():
            train_set, validation_set = build_data(recipe, model.config)
        if recipe.frozen_pattern is not None:
            freeze(model, recipe.frozen_pattern)
        result = train(model, train_set, recipe, output, validation_set, build_processor(model.config), resume, cpu)
        if recipe.push_to_hub is not None and result.stopped_by == "max_steps" and processes.is_main_process:
            push_checkpoint(output / "best", recipe.push_to_hub, recipe.push_private)
        return result


def push_checkpoint(folder: str | Path, repository: str, private: bool = True) -> str:
    """Publish a checkpoint on the Hub: what `combo-hf push` publishes and nothing else of the folder, as one commit.

    Args:
        folder (`str` or `Path`): with config.json, processor and weights.
        repository (`str`): owner/name; made if it does not exist.
        private (`bool`): nobody else may see it; an existing repository that is public is then an error.

    Returns:
        Address of the repository.

    Raises:
        FileNotFoundError: no checkpoint there.
        OSError: the Hub refuses, or cannot be reached; the training's files are kept.
    """
    from combo_hf.publishing import plan_publication, publish, resolve_repo_id

    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint to push.")
    try:
        return publish(plan_publication(folder, resolve_repo_id(repository)), private=private).url
    except (ValueError, OSError) as error:
        again = f"combo-hf push {folder} {repository}{' --private' if private else ''}"
        raise OSError(f"push failed: {error} The checkpoint is kept; to go on: {again}") from error
