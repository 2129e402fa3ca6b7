"""All in which the subsets S4, MS3 and AVSS of AVSBench differ, beyond what the network needs to know: one table.

Names of classes and numbers of frames are those of `combo_hf.configuration_combo`. The official folders are
AVSBench-object/Single-source (S4), AVSBench-object/Multi-sources (MS3) and AVSBench-semantic (AVSS, the parts v1s, v1m
and v2); the Maskiges lie where the COMBO release looks for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from combo_hf.configuration_combo import AVSS_CLASSES
from combo_hf.configuration_combo import SUBSETS as CORE_SUBSETS


__all__ = [
    "AVSS_CLASSES",
    "GEOMETRIES",
    "OWN",
    "OWN_GEOMETRY",
    "RULES",
    "SPLITS",
    "SUBSETS",
    "SubsetRule",
    "holds_indices",
    "subset_rule",
]
SPLITS = ("train", "val", "test")
_OBJECT = ("", "AVSBench-object/", "AVSBench_object/")


@dataclass(frozen=True)
class SubsetRule:
    """All in which the subsets differ. Paths are templates below the subset's folder; `{k}` is the frame's number.

    Attributes:
        homes: where the subset's folder may lie below the folder that a user names, best first.
        meta: csv file; `id_column` names the clip, `needed` are its columns.
        marker: a folder or file that only this subset has, by which it is found without its csv.
        frame, mask, wav: files of a clip.
        maskiges, videos: places that are tried in order; a video's ending is one of `VIDEO_SUFFIXES`.
        clips: folder pattern of the clips, to find those that the csv does not list.
        label_rgb: colour pictures of the labels (AVSS).
        first: number of the first frame.
        size: (width, height) that frames must have, or `None` for any.
        counts: official number of clips for each split.
        mask_text: what the masks hold, for the card of a built data set.
        rows_per_shard: clips in a parquet file, a few hundred MB.
        geometry: of the training pictures, see `combo_hf.data.transforms`.
        folder, columns: where AVSBench has the subset, and its csv file, for synthetic clips in the official folders.
    """

    name: str
    homes: tuple[str, ...]
    meta: str
    id_column: str
    needed: tuple[str, ...]
    marker: str
    frame: str
    mask: str
    wav: str
    maskiges: tuple[str, ...]
    videos: tuple[str, ...]
    clips: str
    first: int
    size: tuple[int, int] | None
    counts: dict[str, int]
    mask_text: str
    rows_per_shard: int
    geometry: str
    folder: str
    columns: tuple[str, ...]
    label_rgb: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, background first."""
        return tuple(CORE_SUBSETS[self.name]["classes"])

    @property
    def semantic(self) -> bool:
        """Masks hold class indices rather than 0 and 255."""
        return len(self.classes) > 2


RULES: dict[str, SubsetRule] = {
    "s4": SubsetRule(
        name="s4",
        homes=("", "Single-source", *(f"{parent}Single-source" for parent in _OBJECT[1:])),
        meta="s4_meta_data.csv",
        id_column="name",
        needed=("name", "category", "split"),
        marker="s4_data",
        frame="s4_data/visual_frames/{split}/{category}/{name}/{name}_{k}.png",
        mask="s4_data/gt_masks/{split}/{category}/{name}/{name}_{k}.png",
        wav="s4_data/audio_wav/{split}/{category}/{name}.wav",
        maskiges=("s4_data/pre_SAM_mask/{split}/{category}/{name}/{name}_{k}_mask_color.png",),
        videos=("s4_data/raw_videos/{split}/{category}/{name}", "raw_videos/{split}/{category}/{name}"),
        clips="s4_data/visual_frames/{split}/*/*",
        first=1,
        size=(224, 224),
        counts={"train": 3452, "val": 740, "test": 740},
        mask_text="0 and 255, where 255 is what sounds; in `train` the first frame only is annotated",
        rows_per_shard=512,
        geometry="scale_crop",
        folder="AVSBench_object/Single-source",
        columns=("name", "start", "category", "split"),
    ),
    "ms3": SubsetRule(
        name="ms3",
        homes=("", "Multi-sources", *(f"{parent}Multi-sources" for parent in _OBJECT[1:])),
        meta="ms3_meta_data.csv",
        id_column="name",
        needed=("name", "split"),
        marker="ms3_data",
        frame="ms3_data/visual_frames/{name}/{name}.mp4_{k}.png",
        mask="ms3_data/gt_masks/{split}/{name}/{name}_{k}.png",
        wav="ms3_data/audio_wav/{split}/{name}.wav",
        maskiges=("ms3_data/pre_SAM_mask/{name}/{name}.mp4_{k}_mask_color.png",),
        videos=("ms3_data/raw_videos/{split}/{name}", "ms3_data/raw_videos/{name}", "raw_videos/{name}"),
        clips="ms3_data/visual_frames/*",
        first=1,
        size=(224, 224),
        counts={"train": 296, "val": 64, "test": 64},
        mask_text="0 and 255, where 255 is what sounds",
        rows_per_shard=128,
        geometry="scale_crop",
        folder="AVSBench_object/Multi-sources",
        columns=("name", "split"),
    ),
    "avss": SubsetRule(
        name="avss",
        homes=("", "AVSBench-semantic", "AVSBench_semantic"),
        meta="metadata.csv",
        id_column="uid",
        needed=("vid", "uid", "a_obj", "split", "label"),
        marker="label2idx.json",
        frame="{label}/{name}/frames/{k}.jpg",
        mask="{label}/{name}/labels_semantic/{k}.png",
        wav="{label}/{name}/audio.wav",
        maskiges=(
            "pre_SAM_mask/{label}/{name}/frames/{k}_mask_color.png",
            "pre_SAM_mask/AVSBench_semantic/{label}/{name}/frames/{k}_mask_color.png",
        ),
        videos=("{label}/{name}/video", "raw_videos/{label}/{name}", "raw_videos/{name}"),
        clips="v[12]*/*",
        first=0,
        size=None,
        counts={"train": 8498, "val": 1304, "test": 1554},
        mask_text="class indices 0 to 70; in `train` the v1s clips are annotated in the first frame only",
        rows_per_shard=128,
        geometry="centre_crop",
        folder="AVSBench_semantic",
        columns=("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"),
        label_rgb="{label}/{name}/labels_rgb/{k}.png",
    ),
}
SUBSETS = tuple(RULES)  # of AVSBench
OWN = "own"  # rows of a user's own videos and classes
OWN_GEOMETRY = "scale_crop"
GEOMETRIES = ("scale_crop", "centre_crop")


def subset_rule(subset: str, processed: bool = False) -> SubsetRule:
    """The row of the table.

    Args:
        subset (`str`): "s4", "ms3" or "avss".
        processed (`bool`): AVSS only: the 224 x 224 pictures that the official script makes, in place of those of
            native size. Their Maskiges differ too: the training pictures are cropped.

    Raises:
        ValueError: another name, or `processed` for a subset that has no such pictures.
    """
    if subset not in RULES:
        raise ValueError(f"unknown subset {subset!r}; use one of {list(RULES)}.")
    rule = RULES[subset]
    if not processed:
        return rule
    if subset != "avss":
        raise ValueError(f"subset {subset}: its pictures are 224 x 224 as they are; processed is for avss only.")
    return replace(
        rule,
        frame=rule.frame.replace("/frames/", "/processed_frames/"),
        mask=rule.mask.replace("/labels_semantic/", "/processed_labels_semantic/"),
        maskiges=tuple(place.replace("/frames/", "/processed_frames/") for place in rule.maskiges),
        size=(224, 224),
        label_rgb=None,
    )


def holds_indices(subset: str) -> bool:
    """Whether the masks of a subset's rows hold class indices (AVSS, own data) rather than 0 and 255.

    Raises:
        ValueError: an unknown subset.
    """
    return subset == OWN or subset_rule(subset).semantic
