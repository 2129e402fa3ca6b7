"""The model card of a checkpoint, made of what is known about it and of nothing else.

Scores come from the `results.json` of `combo-hf evaluate`, and only where they were measured with these very weights;
how the weights were made from the recipe or the conversion report beside them. What is not known is said not to be.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from combo_hf.files.typed_yaml import parse_yaml
from combo_hf.files.wording import first_line, some


MARK = "<!-- made by combo-hf push; remove this line to keep your own text -->"
CODE_LICENSE = "apache-2.0"
RELEASE = "https://github.com/yannqi/COMBO-AVS"
PAPER = "https://arxiv.org/abs/2312.06462"
# Scores that may become part of the metadata: key in results.json -> name.
METRICS = {"M_J": "M_J (Jaccard)", "M_F": "M_F (F-measure)", "miou": "mIoU", "fscore": "F-score"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# Fields of a recipe that say how weights were made; no other is shown: paths are nobody's business.
RECIPE_FIELDS = ("seed", "max_steps", "clips_per_batch", "learning_rate", "weight_decay", "mixed_precision")


@dataclass(frozen=True)
class Origin:
    """Where weights come from.

    Attributes:
        license: identifier of the Hub, `"other"` where there is none for it.
        license_text: the terms of the weights, in words.
        made: how they were made: lines of a list, or whole tables.
        tags: for the metadata.
        base_models, datasets: ids of repositories on the Hub that they were made from.
    """

    license: str
    license_text: str
    made: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    base_models: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)


UNKNOWN = Origin(
    "other",
    "Whoever published these weights has not said under which terms. Weights trained on AVSBench are bound to its "
    "terms (CC BY-NC 4.0, no commercial use).",
)
CONVERTED = (
    "These are the authors' weights of the [official release]({release}) under other names: its terms hold. They were "
    "trained on AVSBench (CC BY-NC 4.0): no commercial use."
)
SYNTHETIC = "Apache-2.0. They were trained on drawn and synthesised clips only; nobody's recordings are in them."
AVSBENCH = "CC BY-NC 4.0, as AVSBench, on which they were trained: no commercial use."


def find_origin(folder: str | Path, license: str | None = None) -> Origin:
    """What a checkpoint's folder (or, for a recipe, the one above it) says of its origin.

    Args:
        folder: of the checkpoint.
        license: identifier of the Hub for the weights, where the caller knows better.

    Raises:
        ValueError: a file that should say so cannot be read.
    """
    folder = Path(folder)
    origin = UNKNOWN
    said = folder / "origin.json"  # what its makers say, where no recipe or report can
    report, facts = folder / "conversion_report.json", folder / "demo.json"
    recipe = next((path for path in (folder / "recipe.yaml", folder.parent / "recipe.yaml") if path.is_file()), None)
    if said.is_file():
        origin = _said(_read(said))
    elif report.is_file():
        origin = _converted(_read(report))
    elif recipe is not None:
        origin = _trained(_read(recipe), _read(facts) if facts.is_file() else {})
    if license is not None:
        text = f"{plain_text(license)}, says whoever published them."
        return dataclasses.replace(origin, license=license, license_text=text)
    return origin


def _said(values: Mapping[str, Any]) -> Origin:
    try:
        return Origin(**{name: values[name] for name in ("license", "license_text", "made", "tags")})
    except KeyError as error:
        raise ValueError(f"origin.json: {error} is missing.") from error


def _converted(report: Mapping[str, Any]) -> Origin:
    counts = {name: len(report.get(name) or ()) for name in ("consumed", "dropped", "missing")}
    made = [
        f"converted from a checkpoint of the official release, preset {plain_text(report.get('preset'))}; every "
        "entry, with its reason, is in the `conversion_report.json` beside the converted files",
        "| entries | number |\n|---|---|\n"
        "| taken over | {consumed} |\n| dropped | {dropped} |\n| not in the file | {missing} |".format(**counts),
    ]
    return Origin("other", CONVERTED.format(release=RELEASE), made, ["converted"])


def _trained(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> Origin:
    model, data = _mapping(recipe.get("model")), _mapping(recipe.get("data"))
    synthetic = data.get("source", "synthetic") == "synthetic"
    made = [f"preset {plain_text(model.get('preset'))}"]
    if synthetic:
        clips, kind, seed = (plain_text(data.get(name)) for name in ("train_clips", "kind", "seed"))
        made.append(f"{clips} synthetic clips of kind {kind}, drawn from seed {seed}")
    else:
        made.append(f"AVSBench, subset {plain_text(data.get('subset'))}")
    made += [f"{name.replace('_', ' ')} {plain_text(recipe[name])}" for name in RECIPE_FIELDS if name in recipe]
    cost = facts.get("cost with sound")
    if isinstance(cost, dict) and "machine" in facts:
        steps, minutes, machine = (
            plain_text(value) for value in (cost.get("steps"), cost.get("minutes"), facts["machine"])
        )
        made.append(f"{steps} steps in {minutes} minutes on {machine}")
    started = [name for name in ("pretrained", "backbone", "vggish") if model.get(name)]
    bases = [model[name] for name in started if is_repository(model[name])]
    if started:
        made.append(f"started from other weights ({', '.join(started)})")
    if not synthetic:
        known = [data["path"]] if is_repository(data.get("path")) else []
        return Origin("cc-by-nc-4.0", AVSBENCH, made, ["avsbench"], bases, known)
    if started:
        return Origin(UNKNOWN.license, UNKNOWN.license_text, made, ["synthetic"], bases)
    return Origin(CODE_LICENSE, SYNTHETIC, made, ["synthetic"])


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def plain_text(value: Any) -> str:
    """A value of a file as text that is neither a path, nor HTML, nor markup: shown as it is, on one line."""
    text = " ".join(str(value).split())
    if isinstance(value, str) and (value.startswith(("/", "~", ".")) or "\\" in value):
        text = text.replace("\\", "/").rpartition("/")[2]
    text = html.escape(text[:200], quote=False)
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", text)


def is_repository(value: Any) -> bool:
    """Whether a setting is the id of a repository on the Hub, and no folder here."""
    return isinstance(value, str) and bool(HUB_ID.fullmatch(value)) and not Path(value).exists()


def _read(path: Path) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else parse_yaml(text, path.name)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: wanted a mapping, got {type(content).__name__}.")
    return content


def read_results(path: str | Path, fingerprint: str) -> dict[str, Any]:
    """Read a `results.json` and check that it is about these weights.

    Args:
        path: of the file, or of the folder it is in.
        fingerprint: of the weights, by `combo_hf.files.environment.fingerprint_weights`.

    Raises:
        ValueError: no such file, not written by `combo-hf evaluate`, or measured with other weights.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the results.json that combo-hf evaluate wrote.")
    results = _read(path)
    scores, settings = results.get("scores"), results.get("settings")
    if not isinstance(scores, dict) or not isinstance(settings, dict) or not set(scores) & set(METRICS):
        raise ValueError(f"{path.name}: not a results.json of combo-hf evaluate.")
    if settings.get("weights") != fingerprint:
        raise ValueError(f"{path.name} was measured with other weights than these; run combo-hf evaluate on them.")
    return results


def is_ablation(results: Mapping[str, Any]) -> bool:
    """Whether something was taken from the network for the measurement."""
    return any(results["settings"].get(name) for name in ("silence_audio", "blank_maskige"))


def build_card(
    config: Any, repo_id: str, origin: Origin, results: Sequence[Mapping[str, Any]] = (), preview: str | None = None
) -> str:
    """The text of README.md.

    Args:
        config ([`ComboConfig`]): of the model.
        repo_id: where it goes; shown in the examples.
        origin: what is known of the weights.
        results: of [`read_results`]; all are shown, and those of the whole network become metadata.
        preview: what the picture shows; `None`: there is none.

    Returns:
        Markdown with metadata in front.
    """
    name = repo_id.rpartition("/")[2]
    parts = [_metadata(name, origin, results), MARK, f"# {name}", _about(config)]
    if preview is not None:
        parts.append(f"![frames, Maskiges, heat maps, masks and sound](preview.png)\n\n{preview}")
    parts += [_usage(repo_id), _uses(origin), _licences(origin), _making(origin), _scores(results)]
    return "\n\n".join([*parts, _limits(config), _quirks(config)]) + "\n"


def _metadata(name: str, origin: Origin, results: Sequence[Mapping[str, Any]]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    measured = []
    for entry in results:
        if is_ablation(entry):
            continue
        data = {"dataset_type": "custom", "dataset_name": data_name(entry), "dataset_split": entry["split"]}
        for key in METRICS:
            if isinstance(entry["scores"].get(key), float):
                value = round(100 * entry["scores"][key], 2)
                measured.append(
                    EvalResult("image-segmentation", metric_type=key, metric_name=METRICS[key], metric_value=value,
                               **data)
                )  # fmt: skip
    tested = [entry["data"] for entry in results if is_repository(entry["data"])]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",  # the nearest of the Hub's tasks; the pipeline's own is among the tags
        license=origin.license,
        license_name=None if origin.license != "other" else "see-below",
        tags=["audio-visual-segmentation", "combo", *origin.tags],
        base_model=origin.base_models or None,
        datasets=list(dict.fromkeys([*origin.datasets, *tested])) or None,
        metrics=[name for name in METRICS if any(name in entry["scores"] for entry in results)] or None,
        model_name=name if measured else None,
        eval_results=measured or None,
    )
    return f"---\n{card.to_yaml()}\n---"


def data_name(results: Mapping[str, Any]) -> str:
    """Data set and subset, without the path of somebody's machine."""
    name = str(results["data"])
    name = name if is_repository(name) else Path(name).name
    subset = results.get("subset")
    return f"{name} ({subset})" if subset and subset not in name else name


def _about(config: Any) -> str:
    labels = [label for index, label in sorted(config.id2label.items()) if int(index) > 0]
    shown = some((plain_text(label) for label in labels), 8)
    return (
        f"Which pixels make this sound? A [COMBO]({PAPER}) network for audio-visual segmentation: a video goes in, "
        "and for every second comes out where something is that sounds; what is silent is left out.\n\n"
        f"Classes: {shown}. Input {config.image_size} x {config.image_size}, one frame a second, clips of "
        f"{config.num_frames} seconds."
    )


def _usage(repo_id: str) -> str:
    return (
        "## Use it\n"
        "With the package `combo-hf` installed no code of this repository is run:\n"
        "```python\n"
        "import combo_hf\n\n"
        f'pipe = combo_hf.load_pipeline("{repo_id}")\n'
        'result = pipe(str(combo_hf.ASSETS / "demo_clip.mp4"))  # or your video\n'
        'for frame in result["frames"]:\n'
        '    print(frame["timestamp"], [segment["label"] for segment in frame["segments"]])\n'
        "```\n"
        "Without it, the code beside the weights is run; it needs `transformers`, `torch`, `av` and "
        "`scikit-image`:\n"
        "```python\n"
        "from transformers import pipeline\n\n"
        f'pipe = pipeline("audio-visual-segmentation", model="{repo_id}", trust_remote_code=True)\n'
        "```"
    )


def _uses(origin: Origin) -> str:
    only = ""
    if "synthetic" in origin.tags:
        only = (
            " These weights know only drawn scenes and are of no use on real videos: demonstrations, tests, teaching."
        )
    return (
        "## Uses and misuse\n"
        "Research, teaching, finding sounding things in videos that you may use." + only + "\n\n"
        "Not for watching or identifying people, not for any decision about people, not where a missed or invented "
        "sound does harm."
    )


def _licences(origin: Origin) -> str:
    return f"## Licences\nCode in this repository: Apache-2.0. Weights: {origin.license_text}"


def _making(origin: Origin) -> str:
    lines = [line for line in origin.made if not line.startswith("|")] or ["nothing is recorded beside the weights"]
    tables = ["", *(line for line in origin.made if line.startswith("|"))]
    return "## How it was made\n" + "\n".join(f"- {line}" for line in lines) + "\n\n".join(tables)


def _scores(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "## Scores\nNone were measured with these weights by `combo-hf evaluate`."
    rows = ["| data | split | videos | protocol | network | " + " | ".join(METRICS.values()) + " |"]
    rows.append("|" + "---|" * (5 + len(METRICS)))
    for entry in results:
        settings, scores = entry["settings"], entry["scores"]
        network = "silence in place of the sound" if settings.get("silence_audio") else "whole"
        network += ", black Maskiges" if settings.get("blank_maskige") else ""
        cells = [
            *(plain_text(value) for value in (data_name(entry), entry["split"], scores.get("num_videos", ""))),
            plain_text(entry.get("protocol", "")),
            network,
        ]
        values = [f"{100 * scores[key]:.2f}" if isinstance(scores.get(key), float) else "" for key in METRICS]
        rows.append("| " + " | ".join([*cells, *values]) + " |")
    return "## Scores\nMeasured with these weights by `combo-hf evaluate`, in percent:\n\n" + "\n".join(rows)


def _limits(config: Any) -> str:
    return (
        "## Limits and biases\n"
        "- A class that was not trained is never named; sound from outside the picture may be given to something in "
        "it.\n"
        "- One decision a second: shorter events are found where their second is heard.\n"
        "- The proposals used in training and in use should be of the same kind; the default here needs no weights "
        "and is coarser than a segmentation model.\n"
        "- What videos and places the training data shows most is what the network knows best."
    )


def _quirks(config: Any) -> str:
    lines = [
        f"- `audio_query_layout` is `{config.audio_query_layout}`. `official` repeats a reshape of the release that "
        "lets most queries hear the sound of another second of the clip; weights trained that way need it. "
        "`per_frame` gives every query its own second.",
        f"- `fusion` is {'on' if config.fusion else 'off'}; the release's AVSS/R50 test configuration has it off.",
        f"- `consistency_window` is {config.consistency_window}; the release cuts clips into windows of 5.",
    ]
    return f"## Differences from the official code\nThe original is at {RELEASE}.\n\n" + "\n".join(lines)
