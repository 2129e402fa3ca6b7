"""What a publication consists of: weights, configuration, processor, code, card and picture; nothing else of a folder.

Optimizer states, logs, caches and whatever else lies in a training folder stay where they are.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from combo_hf import __version__, remote_code_combo
from combo_hf.configuration_combo import ComboConfig
from combo_hf.files.environment import fingerprint_weights
from combo_hf.files.wording import first_line
from combo_hf.modeling_combo import ComboForAudioVisualSegmentation
from combo_hf.processing_combo import ComboProcessor
from combo_hf.publishing.card import MARK, build_card, find_origin, read_results


WEIGHTS, INDEX, PREVIEW, CARD = "model.safetensors", "model.safetensors.index.json", "preview.png", "README.md"
HANDLER, REQUIREMENTS = "handler.py", "requirements.txt"
MAX_SHARD_SIZE = 5 * 10**9
CACHED = "cached"  # name of the proposal generator that keeps its masks
LABELS = ("id2label", "label2id")
SECRET = re.compile(rb"hf_[A-Za-z0-9]{30,}")
REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}")
PREVIEW_TEXT = "The clip that comes with the package: rows of frames, Maskiges, heat maps and masks."


@dataclass(frozen=True)
class PublishedFile:
    """One file of a publication.

    Attributes:
        name: in the repository.
        size: bytes.
        why: what it is there for.
        source: file on disk, or the content itself.
    """

    name: str
    size: int
    why: str
    source: Path | bytes = field(repr=False)


@dataclass
class Publication:
    """Everything that goes to `repo_id`, in order of importance."""

    repo_id: str
    files: list[PublishedFile]
    card_only: bool = False

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


def plan_publication(
    folder: str | Path,
    repo_id: str,
    *,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    preview: bool = True,
    card_only: bool = False,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Publication:
    """Put together what would be published; nothing is sent.

    Args:
        folder: of the checkpoint: config.json, processor_config.json, weights as safetensors. A README.md of your own
            goes as it is; one that was made by an earlier push is made anew.
        repo_id: `name` or `owner/name`.
        results: files (or their folders) of `combo-hf evaluate` for these weights; a results.json in the folder is
            taken without being named.
        license: of the weights, as an identifier of the Hub; default: what the folder says of their origin.
        preview: also a picture: preview.png of the folder, or one drawn from the package's clip.
        card_only: only card and picture.
        max_shard_size: bytes; larger weights are split.

    Raises:
        ValueError: an impossible name, no complete checkpoint, weights that do not fit the configuration, results of
            other weights, or a file that holds what looks like an access token.
    """
    folder = Path(folder)
    if not REPO_ID.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id:
        raise ValueError(f"{repo_id!r} is no name of a repository; wanted name or owner/name.")
    config_text, processor_text = _read_settings(folder)
    shards = _weight_files(folder)
    model = _load_model(folder)
    known = [*results, *([folder / "results.json"] if (folder / "results.json").is_file() and not results else [])]
    fingerprint = fingerprint_weights(model) if known else ""
    measured = [read_results(path, fingerprint) for path in known]
    picture = _preview(folder, model) if preview else None
    shown = None if picture is None else "" if (folder / PREVIEW).is_file() else PREVIEW_TEXT
    card = (
        _own_card(folder) or build_card(model.config, repo_id, find_origin(folder, license), measured, shown).encode()
    )
    texts = [(CARD, card, "model card")] + ([(PREVIEW, picture, "picture of a result")] if picture else [])
    temporary = None
    if not card_only:
        shards, temporary = _split(shards, max_shard_size)
        texts += [
            ("config.json", config_text, "configuration"),
            ("processor_config.json", processor_text, "processor"),
        ]
        why = f"code of combo-hf {__version__}, for trust_remote_code"
        texts += [(path.name, path.read_bytes(), why) for path in remote_code_combo.code_files()]
        texts.append((HANDLER, Path(__file__).with_name(HANDLER).read_bytes(), "for Inference Endpoints"))
        texts.append((REQUIREMENTS, _requirements(), "packages that the code needs"))
    files = [] if card_only else [PublishedFile(path.name, path.stat().st_size, "weights", path) for path in shards]
    files += [PublishedFile(name, len(content), why, content) for name, content, why in texts]
    for file in files:
        if isinstance(file.source, bytes) and SECRET.search(file.source):
            raise ValueError(f"{file.name} holds what looks like an access token; take it out before publishing.")
    publication = Publication(repo_id, files, card_only)
    if temporary is not None:  # shards live as long as the publication
        weakref.finalize(publication, shutil.rmtree, temporary, ignore_errors=True)
    return publication


def _requirements() -> bytes:
    """What the code needs beside torch, which every image of an endpoint has."""
    needed = [entry for entry in importlib.metadata.requires("combo-hf") or () if "extra ==" not in entry]
    return "".join(f"{entry}\n" for entry in needed if not entry.startswith("torch")).encode()


def _read_settings(folder: Path) -> tuple[bytes, bytes]:
    """config.json and processor_config.json with the entries that name the code, without paths."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder.")
    texts = []
    for name, entries in (
        ("config.json", remote_code_combo.ENTRIES),
        ("processor_config.json", remote_code_combo.PROCESSOR_ENTRIES),
    ):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder} holds no {name}; give a folder of save_pretrained with its processor."
            ) from error
        except ValueError as error:
            raise ValueError(f"{name} is no JSON: {error}") from error
        if name == "config.json" and content.get("model_type") != ComboConfig.model_type:
            raise ValueError(f"config.json is of a {content.get('model_type')!r}, wanted {ComboConfig.model_type!r}.")
        content = {**_without_paths(content), **entries}
        texts.append((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    return texts[0], texts[1]


def _without_paths(content: Any) -> Any:
    """A setting without what says where things are on this machine; of a path its last part stays.

    A proposal generator that keeps its masks in a folder becomes the generator itself.
    """
    if isinstance(content, list):
        return [_without_paths(value) for value in content]
    if isinstance(content, str):
        return Path(content.replace("\\", "/")).name if is_path(content) else content
    if not isinstance(content, dict):
        return content
    if content.get("name") == CACHED and "generator" in content:
        return _without_paths(content["generator"])
    kept = {key: value for key, value in content.items() if key != "_name_or_path"}
    return {key: value if key in LABELS else _without_paths(value) for key, value in kept.items()}


def is_path(text: str) -> bool:
    """Whether a setting is a path of this machine rather than a word or the id of a repository."""
    if text.startswith(("/", "~", ".")) or "\\" in text or text.count("/") > 1 or re.match(r"[A-Za-z]:", text):
        return len(text) > 1
    return "/" in text and Path(text).exists()


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files, the index last."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        other = [path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        hint = f" ({other[0]} is not published: it may hold code)" if other else ""
        raise ValueError(f"{folder} holds no {WEIGHTS}{hint}; save the model with save_pretrained.")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{INDEX} is damaged: {error!r}") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{INDEX} names {missing[0]!r}, which is not in {folder}.")
    return [*(folder / name for name in names), folder / INDEX]


def _load_model(folder: Path) -> ComboForAudioVisualSegmentation:
    """The model, which proves that the folder is complete."""
    try:
        model = ComboForAudioVisualSegmentation.from_pretrained(folder)
        ComboProcessor.from_pretrained(folder)
    except Exception as error:  # whatever is wrong with the files
        raise ValueError(f"{folder} does not load, so it is not published: {first_line(error, 300)}") from error
    return model.eval()


def _own_card(folder: Path) -> bytes | None:
    """A README.md that somebody wrote."""
    content = _as_it_lies(folder, CARD)
    return None if content is None or MARK.encode() in content else content


def _as_it_lies(folder: Path, name: str) -> bytes | None:
    """A file of the folder that goes as it is; `None`: there is none.

    Raises:
        ValueError: a link out of the folder: one in a folder of somebody else's may show anything of this machine. (A
            snapshot of the Hub's cache links to the blobs beside it.)
    """
    path, place = folder / name, folder.resolve()
    if not path.is_file():
        return None
    target = path.resolve()
    if not target.is_relative_to(place) and target.parent != place.parent.parent / "blobs":
        raise ValueError(f"{name} is a link to {target}, outside of {folder}; put the file itself there.")
    return path.read_bytes()


def _preview(folder: Path, model: ComboForAudioVisualSegmentation) -> bytes:
    """preview.png of the folder, or what the model makes of the package's clip."""
    kept = _as_it_lies(folder, PREVIEW)
    if kept is not None:
        return kept
    from combo_hf import ASSETS
    from combo_hf.pipeline_combo import AudioVisualSegmentationPipeline
    from combo_hf.results.pictures import contact_sheet

    processor = ComboProcessor.from_pretrained(folder)
    pipe = AudioVisualSegmentationPipeline(model=model, processor=processor, device=model.device)
    result = pipe(str(ASSETS / "demo_clip.mp4"), return_maps=True)
    buffer = io.BytesIO()
    contact_sheet(result).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _split(files: list[Path], max_shard_size: int) -> tuple[list[Path], Path | None]:
    """The weights in files of about so many bytes, in a temporary folder; as they are where none is larger."""
    if all(path.stat().st_size <= max_shard_size for path in files):
        return files, None
    from huggingface_hub import save_torch_state_dict
    from safetensors import safe_open

    tensors = {}
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
    temporary = Path(tempfile.mkdtemp(prefix="combo-hf-shards-"))
    try:
        save_torch_state_dict(tensors, temporary, max_shard_size=max_shard_size, metadata={"format": "pt"})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return _weight_files(temporary), temporary
