"""Small clips, a small network and recipes for tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from combo_hf.data.collate import ClipExample
from combo_hf.training import ClipTensors, ModelRecipe, TrainingRecipe, build_model


SIZE = 64
SMALL = {"image_size": SIZE, "train_num_points": 64, "num_queries": 6, "fusion_dropout": 0.1}
# Nothing that depends on how clips are dealt out to batches: no dropout, no statistics of a batch.
PLAIN = {**SMALL, "fusion_dropout": 0.0, "freeze_batch_norm": True}
CHANGING = ("seconds_per_step",)


def clips(count: int, labels: int = 2, frames: tuple[int, ...] = (2, 3), masks: bool = True) -> ClipTensors:
    """Noise with a square that sounds; every third clip has frames in which nothing does."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for index in range(count):
        length = frames[index % len(frames)]
        pictures = torch.randint(256, (2, length, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        target = torch.zeros(length, SIZE, SIZE, dtype=torch.uint8)
        target[:, 16:48, 16:48] = 1 + index % (labels - 1)
        if index % 3 == 2:
            target[1:] = 0
        sound = torch.randn(length, 1, 96, 64, generator=generator)
        known = torch.full((length,), masks)
        examples.append(ClipExample(f"clip{index}", pictures[0], pictures[1], sound, target[known], known))
    return ClipTensors(examples)


def recipe(overrides: dict[str, Any] = SMALL, **changes: Any) -> TrainingRecipe:
    """Four steps of two clips, evaluated after two."""
    fixed = {"max_steps": 4, "clips_per_batch": 2, "log_every": 1, "eval_every": 2, "progress": False}
    return TrainingRecipe(model=ModelRecipe(overrides=overrides), **{"learning_rate": 1e-3, **fixed, **changes})


def small_model(overrides: dict[str, Any] = SMALL, seed: int = 0) -> Any:
    return build_model(ModelRecipe(overrides=overrides), seed)


def fix_points(model: Any) -> Any:
    """Let the loss take the same points for every mask of every batch."""
    generator = torch.Generator().manual_seed(1)
    stored: dict[tuple[str, int], torch.Tensor] = {}

    def draw(kind: str, masks: int, count: int, device: torch.device) -> torch.Tensor:
        if (kind, count) not in stored:
            stored[kind, count] = torch.rand(count, 2, generator=generator)
        return stored[kind, count].expand(masks, -1, -1).to(device)

    model.criterion.draw_points = draw
    return model


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in CHANGING} for record in lines]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder) if "loss" in record]
