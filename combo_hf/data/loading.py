"""AVSBench (or clips like it) as `datasets` rows, from a folder or the Hub; and, from here too, as clips for training.

    rows = load_avsbench("avsbench", "train", subset="s4")
    clips = AvsbenchClips(rows, build_transform("s4", train=True))
    loader = DataLoader(clips, batch_size=8, shuffle=True, num_workers=2, collate_fn=ComboCollator())

Rows may also be transformed lazily, `rows.with_transform(ComboTransform(build_transform("s4", train=True)))`, or, if
they are streamed, by `map`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from combo_hf.data.clips import AvsbenchClips, ComboTransform
from combo_hf.data.row_format import HINT, SAMPLING_RATE, check_columns
from combo_hf.files.parquet import open_parquet
from combo_hf.files.pictures import read_bytes
from combo_hf.files.typed_yaml import parse_yaml


__all__ = ["AvsbenchClips", "ComboTransform", "check_columns", "load_avsbench"]
MAX_CARD = 1 << 20  # bytes
RAW_MARKS = (
    "AVSBench-object",
    "AVSBench_object",
    "AVSBench-semantic",
    "AVSBench_semantic",
    "Single-source",
    "Multi-sources",
    "s4_data",
    "ms3_data",
    "metadata.csv",
)


def load_avsbench(
    path_or_repo: str | Path,
    split: str,
    subset: str | None = None,
    streaming: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Any:
    """Open a data set of clips.

    Args:
        path_or_repo: folder that `combo-hf data build` or `combo-hf data synthesize` wrote, folder of
            `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, or the id of a data set on the Hub.
        split (`str`): "train", "val" or "test".
        subset (`str`, *optional*): "s4", "ms3" or "avss": name of the configuration; needed where there are several.
        streaming (`bool`): read rows as they are asked for, in order, without copying the data set to this machine.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        token (`str` or `bool`, *optional*): of the Hub, for private data sets; default: the one of `hf auth login`.
        cache_dir (`str` or `Path`, *optional*): where `datasets` keeps its copy.

    Returns:
        `datasets.Dataset`, or `datasets.IterableDataset` if streaming, of rows with the columns of
        `combo_hf.data.row_format.row_features`; `audio` holds the bytes of the sound file.

    Raises:
        ValueError: the split or subset does not exist, the folder holds no such data set, or columns are missing.
        FileNotFoundError: no such folder, or no such data set on the Hub (or it is private).
        ConnectionError: the Hub cannot be reached.
        ImportError: `datasets` is not installed.
    """
    datasets = _datasets()
    folder = _local_folder(path_or_repo)
    name = str(path_or_repo)
    if folder is None:
        dataset = _open_builder(datasets, name, split, subset, streaming, _hub_options(revision, token, cache_dir))
    elif (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        dataset = _open_saved(datasets, folder, split, subset)
        dataset = dataset.to_iterable_dataset() if streaming else dataset
    else:
        _check_folder(folder)
        options = {} if cache_dir is None else {"cache_dir": str(cache_dir)}
        dataset = _open_builder(datasets, str(folder), split, subset, streaming, options)
    check_columns(dataset.features, name)
    # decoding by `datasets` would need torchcodec and a system FFmpeg
    return dataset.cast_column("audio", datasets.Audio(sampling_rate=SAMPLING_RATE, decode=False))


def _local_folder(path_or_repo: str | Path) -> Path | None:
    """The folder, or `None` for the id of a data set on the Hub.

    Raises:
        FileNotFoundError: neither.
    """
    text = os.fspath(path_or_repo)
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    parts = text.split("/")
    is_id = isinstance(path_or_repo, str) and len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~")
    if path.exists() or not is_id:
        raise FileNotFoundError(
            f"{text} is no folder; wanted one that `combo-hf data build` wrote, or the id owner/name of a data set on "
            "the Hub."
        )
    return None


def _check_folder(folder: Path) -> None:
    raw = [mark for mark in RAW_MARKS if (folder / mark).exists()]
    if raw:
        raise ValueError(
            f"{folder} holds AVSBench as it was downloaded ({raw[0]}); build a data set from it first: combo-hf data "
            f"build --subset s4 --root {folder} --output avsbench"
        )
    if next(folder.rglob("*.parquet"), None) is None:
        raise ValueError(f"{folder} holds no parquet file. {HINT}")
    _check_card(folder)


def _check_card(folder: Path) -> None:
    """Refuse a card that has `datasets` read files elsewhere, or fetch them: a stranger may have written it."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    for name in ("README.md", ".huggingface.yaml"):
        if not (folder / name).is_file():
            continue
        text = read_bytes(folder / name, MAX_CARD).decode("utf-8", "replace")
        block = REGEX_YAML_BLOCK.search(text) if name == "README.md" else None
        values = parse_yaml(block.group(2) if block else "" if name == "README.md" else text, name)
        for place in _texts(values.get("configs") if isinstance(values, dict) else None):
            if "://" in place or "::" in place or os.path.isabs(place) or ".." in re.split(r"[/\\]", place):
                raise ValueError(f"{folder / name} names files that are not in its folder: {place[:80]!r}.")


def _texts(values: Any) -> Iterator[str]:
    """All texts in nested values."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, (list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)


def _hub_options(revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> dict[str, Any]:
    options = {"revision": revision, "token": token, "cache_dir": None if cache_dir is None else str(cache_dir)}
    return {name: value for name, value in options.items() if value is not None}


def _open_builder(
    datasets: Any, name: str, split: str, subset: str | None, streaming: bool, options: dict[str, Any]
) -> Any:
    """Parquet files of a folder or of the Hub."""
    import pyarrow

    try:
        builder = _find_builder(datasets, name, subset, options)
        splits = [str(key) for key in builder.config.data_files or builder.info.splits or ()]
        if split not in splits:
            raise ValueError(f"{name}: split: wanted one of {splits}, got {split!r}.")
        for path in itertools.chain(*(builder.config.data_files or {}).values()):
            if os.path.isfile(path):
                open_parquet(Path(path)).close()
        if streaming:
            return builder.as_streaming_dataset(split=split)
        with _quiet_without_terminal(datasets):
            builder.download_and_prepare()
            return builder.as_dataset(split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: no such folder here, and no such data set on the Hub; or it is private: `hf auth login`."
        ) from error
    except (pyarrow.ArrowInvalid, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(
            f"{name}: a file cannot be read as parquet ({_first_line(error)}); build or download it again."
        ) from error
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise ConnectionError(
            f"{name}: no such folder here, and the Hub cannot be reached ({_first_line(error)})."
        ) from error


def _find_builder(datasets: Any, name: str, subset: str | None, options: dict[str, Any]) -> Any:
    """The configuration that was asked for; the only one, if none was."""
    try:
        builder = datasets.load_dataset_builder(name, subset, **options)
        known = list(builder.builder_configs)
    except ValueError as error:
        known = datasets.get_dataset_config_names(name, **{k: v for k, v in options.items() if k != "cache_dir"})
        if subset in known or (subset is None and len(known) < 2):
            raise
        got = "none was chosen" if subset is None else f"got {subset!r}"
        raise ValueError(f"{name}: subset: wanted one of {sorted(known)}, {got}.") from error
    if subset is None and len(known) > 1:  # a default may be named; but which subset it is matters too much
        raise ValueError(f"{name}: subset: wanted one of {sorted(known)}, none was chosen.")
    return builder


def _open_saved(datasets: Any, folder: Path, split: str, subset: str | None) -> Any:
    """A folder of `save_to_disk`; rows of one kind are picked by their columns `split` and `subset`."""
    saved = datasets.load_from_disk(str(folder))
    if hasattr(saved, "keys"):
        if split not in saved:
            raise ValueError(f"{folder}: split: wanted one of {sorted(saved)}, got {split!r}.")
        wanted, dataset = {"subset": subset}, saved[split]
    else:
        wanted, dataset = {"split": split, "subset": subset}, saved
    check_columns(dataset.features, str(folder))
    for column, value in wanted.items():
        if value is None or column not in dataset.features:
            continue
        values = dataset.with_format(None).select_columns([column])[:][column]
        if value not in values:
            raise ValueError(f"{folder}: {column}: wanted one of {sorted(set(map(str, values)))}, got {value!r}.")
        if any(entry != value for entry in values):
            dataset = dataset.select([index for index, entry in enumerate(values) if entry == value])
    return dataset


@contextlib.contextmanager
def _quiet_without_terminal(datasets: Any) -> Iterator[None]:
    """No bars of `datasets` in log files."""
    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()


def _is_of_the_network(error: Exception) -> bool:
    """Whether the Hub did not answer, or not well; the client's HTTP library has changed its name already."""
    kinds = {f"{kind.__module__.split('.')[0].rstrip('2')}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, ConnectionError) or "httpx.HTTPError" in kinds


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _datasets() -> Any:
    try:
        import datasets
        import datasets.exceptions
    except ImportError as error:
        raise ImportError("data set rows need `datasets`: pip install 'combo-hf[train]'") from error
    return datasets
