"""The order of the training clips, and batches of them without end, from wherever a run stands.

The rows of an epoch come in an order that follows from (seed, epoch). Processes take batches of it in turn, and what a
run has handed out is one number: rows of the order so far, all processes together. So it may go on with another number
of processes; no row is left out or repeated for that. At the end of an epoch the rows that do not fill a batch for
every process are left out (another order leaves out others), unless the data set is smaller than that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch

from combo_hf.data.collate import ClipExample, ComboCollator
from combo_hf.files.environment import useful_workers
from combo_hf.training.arguments import TrainingRecipe


if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingSet(Protocol):
    """Clips to train on: [`ClipTensors`] or [`AvsbenchClips`], for example."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> ClipExample: ...
    def set_epoch(self, epoch: int, /) -> None:
        """Other augmentation from here on."""


class EpochOrder(torch.utils.data.Sampler[int]):
    """The rows of one epoch, shuffled by (seed, epoch), without the first so many of them.

    Args:
        count (`int`): rows of the data set.
        seed (`int`)
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self.epoch, self.first = 0, 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.randperm(self.count, generator=generator)[self.first :].tolist()

    def __len__(self) -> int:
        return max(0, self.count - self.first)


class Batches:
    """Batches of a data set; on the device of this process, once Accelerate has prepared `loader`.

    Args:
        dataset ([`TrainingSet`])
        recipe ([`TrainingRecipe`]): for seed, batch size and workers.
        use_maskige (`bool`): see [`ComboCollator`].
        accelerator: deals the batches out to its processes.
    """

    def __init__(
        self, dataset: TrainingSet, recipe: TrainingRecipe, use_maskige: bool, accelerator: Accelerator
    ) -> None:
        self.dataset, self.order = dataset, EpochOrder(len(dataset), recipe.seed)
        self.rows_at_once = recipe.clips_per_batch * accelerator.num_processes
        self.loader: Any = torch.utils.data.DataLoader(
            dataset,  # type: ignore[arg-type]  # torch asks for a subclass where numbered rows do
            batch_size=recipe.clips_per_batch,
            sampler=self.order,
            drop_last=len(dataset) >= self.rows_at_once,
            num_workers=useful_workers(recipe.num_workers),
            collate_fn=ComboCollator(use_maskige),
            # Its own generator: drawing the workers' seed from the global one would shift dropout after a resume.
            generator=torch.Generator().manual_seed(recipe.seed),
            pin_memory=accelerator.device.type == "cuda",
        )

    def from_row(self, epoch: int, rows: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(epoch, rows of its order that have been handed out by now, batch) without end."""
        for number in itertools.count(epoch):
            self.order.epoch, self.order.first = number, rows
            self.loader.set_epoch(number)
            self.dataset.set_epoch(number)
            for batch in self.loader:
                rows += self.rows_at_once
                yield number, rows, batch
            rows = 0
