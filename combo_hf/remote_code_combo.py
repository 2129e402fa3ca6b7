"""What makes a saved checkpoint load where this package is not installed: its own code beside the weights.

transformers (`dynamic_module_utils`) runs the code of a checkpoint on `trust_remote_code=True`: `auto_map` and
`custom_pipelines` of the JSON files name class and file, and a file's siblings are found by a regular expression over
its text. So every file of the core travels, flat, and every one can be reached from every other.

Where the package is installed it needs none of this: `ComboConfig` then forgets both entries when it is loaded, and
`pipeline(task, model=folder)` takes the installed classes without asking for trust.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.dynamic_module_utils import get_relative_import_files


if TYPE_CHECKING:  # never run: makes all files travel, whichever class is saved or loaded
    from .configuration_combo import ComboConfig  # noqa: F401
    from .modeling_combo import ComboForAudioVisualSegmentation  # noqa: F401
    from .pipeline_combo import AudioVisualSegmentationPipeline  # noqa: F401
    from .processing_combo import ComboProcessor  # noqa: F401


AUTO_MAP = {
    "AutoConfig": "configuration_combo.ComboConfig",
    "AutoModel": "modeling_combo.ComboForAudioVisualSegmentation",
    "AutoModelForUniversalSegmentation": "modeling_combo.ComboForAudioVisualSegmentation",
    "AutoImageProcessor": "image_processing_combo.ComboImageProcessor",
    "AutoFeatureExtractor": "feature_extraction_combo.ComboFeatureExtractor",
    "AutoProcessor": "processing_combo.ComboProcessor",
}
# "pt" must be a class of transformers itself.
CUSTOM_PIPELINES = {
    "audio-visual-segmentation": {
        "impl": "pipeline_combo.AudioVisualSegmentationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}
# What goes into config.json, and what into processor_config.json.
ENTRIES: dict[str, dict[str, Any]] = {"auto_map": AUTO_MAP, "custom_pipelines": CUSTOM_PIPELINES}
PROCESSOR_ENTRIES: dict[str, dict[str, Any]] = {
    "auto_map": {name: AUTO_MAP[name] for name in ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor")}
}

# By what transformers chooses the code that computes, and may fetch it from the Hub (`"owner/kernel"`): the caller's
# choice, never that of a file.
CHOICES = (
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
    *("fusion_config", "distributed_config"),
)
MAX_LABELS = 10_000
LONGEST_LABEL = 200  # letters
# Control characters, line ends, marks that turn the direction of writing, halves of surrogates.
INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# True where this very file came with a checkpoint and was loaded by transformers.
LOADED_AS_REMOTE_CODE = __name__.startswith("transformers_modules.")


def code_files() -> list[Path]:
    """The files of the core, sorted by name: exactly those that transformers will look for."""
    return sorted({Path(__file__).resolve(), *map(Path, get_relative_import_files(Path(__file__).resolve()))})


def write_code(folder: str | os.PathLike) -> list[Path]:
    """Copy the core into a checkpoint's folder; a reader sees each file as it was or as it is now.

    Args:
        folder: of the checkpoint; must exist.

    Returns:
        The files written.

    Raises:
        OSError: the folder cannot be written to.
    """
    written = []
    for source in code_files():
        target = Path(folder) / source.name
        if not (target.exists() and os.path.samefile(source, target)):
            temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
            temporary.unlink(missing_ok=True)
            try:
                with open(temporary, "xb") as file:  # new, or a link in a stranger's folder would be followed
                    file.write(source.read_bytes())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        written.append(target)
    return written


@contextmanager
def announced_code(holders: Iterable[Any], carry_code: bool, entries: dict[str, dict]) -> Iterator[None]:
    """While their JSON is written, let configurations or processors name the code; as they were afterwards.

    Args:
        holders: objects whose attributes go into a JSON file.
        carry_code: `False` takes the entries out instead: they would name files that are not there.
        entries: `ENTRIES` or `PROCESSOR_ENTRIES`.
    """
    holders = list(holders)
    before = [{name: vars(holder)[name] for name in entries if name in vars(holder)} for holder in holders]
    try:
        for holder in holders:
            for name, entry in entries.items():
                vars(holder).pop(name, None)
                if carry_code:
                    setattr(holder, name, dict(entry))
        yield
    finally:
        for holder, values in zip(holders, before, strict=True):
            for name in entries:
                vars(holder).pop(name, None)
            vars(holder).update(values)


def push_arguments(save_directory: str | os.PathLike, options: dict[str, Any]) -> dict[str, Any]:
    """Take the arguments of `push_to_hub` out of those of `save_pretrained(..., push_to_hub=True)`.

    Saving and pushing are then two steps: transformers uploads what changed while *it* was saving, the code is not
    among that.

    Args:
        save_directory: its name is the default name of the repository.
        options: keyword arguments of `save_pretrained`; what belongs to the push is taken out.

    Returns:
        Keyword arguments of `push_to_hub`.
    """
    names = ("repo_id", "commit_message", "commit_description", "private", "revision", "create_pr", "tags")
    arguments = {name: options.pop(name) for name in names if name in options}
    arguments.setdefault("repo_id", Path(save_directory).resolve().name)
    if options.get("token") is not None:
        arguments["token"] = options["token"]
    if options.get("max_shard_size") is not None:
        arguments["max_shard_size"] = options["max_shard_size"]
    return arguments


@contextmanager
def reading(file: str) -> Iterator[None]:
    """While one settings file is read: whatever transformers trips over, the file is damaged.

    Args:
        file: how to call it in the error.

    Raises:
        ValueError: in place of an `AttributeError` and the like.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{file} is damaged, or of another kind ({type(error).__name__}: {error}).") from error


def check_kind(file: str, wanted: str, found: object) -> None:
    """Raise `ValueError` where a settings file names another class or kind of model than the one that reads it."""
    if found not in (None, wanted):
        raise ValueError(f"{file}: wanted {wanted}, got {found!r}.")


def without_choices(values: Any) -> Any:
    """Settings of a file, those of its parts too, without `CHOICES`.

    Raises:
        ValueError: packed weights of a kind for which transformers would fetch code, too.
    """
    if not isinstance(values, dict):
        return values
    packing = values.get("quantization_config")
    if isinstance(packing, dict) and packing.get("quant_method") != "torchao":
        raise ValueError(f"quantization_config: wanted torchao, got {str(packing.get('quant_method'))[:80]!r}.")
    return {name: without_choices(value) for name, value in values.items() if name not in CHOICES}


def check_label_count(values: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a configuration asks for more labels than it names: transformers names them all."""
    count = values.get("num_labels") or 0
    if not isinstance(count, int) or count > MAX_LABELS:
        raise ValueError(f"num_labels is {count!r}; wanted a whole number up to {MAX_LABELS}.")


def is_label(name: object) -> bool:
    """Whether this can be the name of a class: `LONGEST_LABEL` visible letters at most."""
    return isinstance(name, str) and len(name) <= LONGEST_LABEL and not INVISIBLE.search(name)


def check_label_names(labels: Mapping[int, Any]) -> None:
    """Raise `ValueError` unless the labels are numbered from 0 and can be shown: printed, painted, put into a card.

    A checkpoint of a stranger may name a class as it likes, and what is printed may command a terminal.
    """
    if sorted(labels) != list(range(len(labels))) or len(labels) > MAX_LABELS:
        raise ValueError(f"id2label: wanted the numbers 0, 1, 2, ..., got {str(sorted(labels))[:200]}.")
    for index, name in labels.items():
        if not is_label(name):
            shown = ascii(name)[:80]
            raise ValueError(f"id2label: wanted {LONGEST_LABEL} visible letters at most, class {index} is {shown}.")
