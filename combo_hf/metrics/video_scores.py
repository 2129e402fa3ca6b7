"""[`VideoScores`]: the scores of a data set, collected video by video, in any order and by any number of processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from combo_hf.metrics.avs_segmentation.video_records import (
    Record,
    check_protocol,
    object_scores,
    put_together,
    semantic_scores,
)
from combo_hf.metrics.functional import score_labels, score_object


class VideoScores:
    """Scores of a data set from its videos, keyed by video id.

    A video that comes twice (distributed samplers repeat some to fill up) counts once. Merging the parts of several
    processes, in any order, gives the bits of one process: what is summed is sorted or exact.

    Args:
        num_labels (`int`, *optional*): K. `None`: M_J and M_F (S4, MS3); else the semantic scores of K classes (AVSS).
        protocol (`str`, defaults to `"avsbench"`): of the semantic scores, see [`SemanticScores`].

    Raises:
        ValueError: fewer than two labels, or an unknown protocol.

    Examples:
        >>> scores = VideoScores()
        >>> record = scores.update("a", torch.tensor([[[0.9, 0.1]]]), torch.tensor([[[1, 0]]]))
        >>> round(scores.compute()["M_J"], 3)
        1.0
    """

    def __init__(self, num_labels: int | None = None, protocol: str = "avsbench") -> None:
        if num_labels is not None and num_labels not in range(2, 256):
            raise ValueError(f"num_labels: wanted 2 to 255 with the background, or None, got {num_labels}.")
        check_protocol(protocol)
        self.num_labels, self.protocol = num_labels, protocol
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def records(self) -> list[Record]:
        """What every video contributes, sorted by video id."""
        return [self._records[name] for name in sorted(self._records)]

    def update(
        self, video_id: str, prediction: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray
    ) -> Record:
        """Add a video.

        Args:
            video_id (`str`): its name in the data set.
            prediction (`(T, H, W)`): probabilities in [0, 1]; with `num_labels`, class ids.
            target (`(T, H, W)`): 0 and 1; with `num_labels`, class ids and 255 = ignored.

        Returns:
            `dict`: what the video contributes, of plain numbers.

        Raises:
            ValueError: impossible values, or another video has the same id.
        """
        if self.num_labels is None:
            record = score_object(str(video_id), prediction, target)
        else:
            record = score_labels(str(video_id), prediction, target, self.num_labels)
        self.extend([record])
        return record

    def extend(self, records: Iterable[Record]) -> VideoScores:
        """Add records, of `update` or `records` of another instance.

        Raises:
            ValueError: two videos with different ground truth under one id.
        """
        new = put_together(records)
        known = [self._records[name] for name in new if name in self._records]
        self._records |= put_together([*known, *new.values()])
        return self

    def merge(self, other: VideoScores) -> VideoScores:
        """Add what another instance has seen.

        Raises:
            ValueError: it has another number of labels or protocol, or two videos share an id.
        """
        return self._take(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, of plain numbers, strings and lists: JSON or a process group can carry it."""
        return {"num_labels": self.num_labels, "protocol": self.protocol, "records": self.records}

    def load_state_dict(self, state: dict[str, Any]) -> VideoScores:
        """Replace what was seen so far by a `state_dict`.

        Raises:
            ValueError: it is of another number of labels or protocol.
        """
        before, self._records = self._records, {}
        try:
            return self._take(state)
        except ValueError:
            self._records = before
            raise

    def gather(self) -> VideoScores:
        """Merge the parts of all processes of the running `torch.distributed` group, in every process.

        A call for all processes together; without a group nothing happens.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, self.state_dict())
            for state in states:
                self._take(state)
        return self

    def compute(self) -> dict[str, Any]:
        """`M_J` and `M_F`, or the scores of [`SemanticScores.compute`]; with `num_videos` and `num_frames`.

        Raises:
            ValueError: no video was added.
        """
        if not self._records:
            raise ValueError("no videos: call update(video_id, prediction, target) before compute().")
        if self.num_labels is None:
            return object_scores(self._records.values())
        return semantic_scores(self._records.values(), self.num_labels, self.protocol)

    def _take(self, state: dict[str, Any]) -> VideoScores:
        theirs, mine = (state["num_labels"], state["protocol"]), (self.num_labels, self.protocol)
        if theirs != mine:
            raise ValueError(f"cannot merge: these scores have (labels, protocol) {mine}, the others {theirs}.")
        return self.extend(state["records"])
