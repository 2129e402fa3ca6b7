"""COMBO audio-visual segmentation for the Hugging Face stack: which pixels make this sound?

After `import combo_hf`, `transformers` knows the architecture: `AutoModel`, `AutoProcessor` and their siblings load
its checkpoints, and `transformers.pipeline("audio-visual-segmentation")` exists. The import costs torch and
transformers; everything else is imported when its name is first used. Only the command `combo-hf` registers later,
when it has read its arguments and needs a network.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

TASK = "audio-visual-segmentation"
ASSETS = Path(__file__).resolve().parent / "assets"
DEFAULT_MODEL = ASSETS / "real"  # knows seven animals and their sounds; for research that is not commercial
RECIPES = ASSETS.parent / "training" / "recipes"  # of `combo-hf train`
BUNDLED_MODEL = ASSETS / "demo"  # knows the synthetic scenes of combo_hf.data.synthetic

# The public names by module, each imported at first use. Editors and type checkers read the same list below.
_PUBLIC = {
    name: module
    for module, names in {
        "configuration_combo": ["ComboConfig"],
        "conversion.official": ["convert_official_checkpoint"],
        "data.collate": ["ComboCollator"],
        "data.loading": ["AvsbenchClips", "ComboTransform", "load_avsbench"],
        "data.transforms": ["build_transform"],
        "feature_extraction_combo": ["ComboFeatureExtractor"],
        "image_processing_combo": ["ComboImageProcessor"],
        "maskige_combo": ["paint_maskige"],
        "media_combo": ["Clip", "MediaError", "MediaInfo", "iter_clips", "probe_media", "read_clip"],
        "modeling_combo": ["ComboForAudioVisualSegmentation", "ComboModel"],
        "pipeline_combo": ["AudioVisualSegmentationPipeline"],
        "processing_combo": ["ComboProcessor"],
        "proposals": ["load_proposal_generator"],
        "proposals.cache": ["CachedProposals"],
        "proposals.clip": ["paint_maskige_clip"],
        "proposals.pregenerate": ["pregenerate"],
        "proposals_combo": ["SuperpixelProposals", "get_proposal_generator"],
        "results.follow": ["follow_label_maps"],
        "results.live": ["LiveSegmenter"],
        "results.pictures": ["contact_sheet", "heat_map", "overlay", "summarize"],
        "results.result": ["SegmentationResult"],
        "results.video": ["write_overlay_video"],
    }.items()
    for name in names
}
_SUBMODULES = {
    **{
        name: name
        for name in ("conversion", "data", "evaluation", "metrics", "proposals", "publishing", "results", "training")
    },
    "visualization": "results.pictures",  # its name before there was a folder of results
}

__all__ = ["load_pipeline", "resolve_model", *_PUBLIC, *_SUBMODULES]

if TYPE_CHECKING:  # `X as X` is how type checkers are told that a name is public
    from .configuration_combo import ComboConfig as ComboConfig
    from .conversion.official import convert_official_checkpoint as convert_official_checkpoint
    from .data.collate import ComboCollator as ComboCollator
    from .data.loading import AvsbenchClips as AvsbenchClips
    from .data.loading import ComboTransform as ComboTransform
    from .data.loading import load_avsbench as load_avsbench
    from .data.transforms import build_transform as build_transform
    from .feature_extraction_combo import ComboFeatureExtractor as ComboFeatureExtractor
    from .image_processing_combo import ComboImageProcessor as ComboImageProcessor
    from .maskige_combo import paint_maskige as paint_maskige
    from .media_combo import Clip as Clip
    from .media_combo import MediaError as MediaError
    from .media_combo import MediaInfo as MediaInfo
    from .media_combo import iter_clips as iter_clips
    from .media_combo import probe_media as probe_media
    from .media_combo import read_clip as read_clip
    from .modeling_combo import ComboForAudioVisualSegmentation as ComboForAudioVisualSegmentation
    from .modeling_combo import ComboModel as ComboModel
    from .pipeline_combo import AudioVisualSegmentationPipeline as AudioVisualSegmentationPipeline
    from .processing_combo import ComboProcessor as ComboProcessor
    from .proposals import load_proposal_generator as load_proposal_generator
    from .proposals.cache import CachedProposals as CachedProposals
    from .proposals.clip import paint_maskige_clip as paint_maskige_clip
    from .proposals.pregenerate import pregenerate as pregenerate
    from .proposals_combo import SuperpixelProposals as SuperpixelProposals
    from .proposals_combo import get_proposal_generator as get_proposal_generator
    from .results.follow import follow_label_maps as follow_label_maps
    from .results.live import LiveSegmenter as LiveSegmenter
    from .results.pictures import contact_sheet as contact_sheet
    from .results.pictures import heat_map as heat_map
    from .results.pictures import overlay as overlay
    from .results.pictures import summarize as summarize
    from .results.result import SegmentationResult as SegmentationResult
    from .results.video import write_overlay_video as write_overlay_video


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"{__name__}.{_SUBMODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_pipeline(repo_or_folder: str | Path | None = None, **kwargs: Any) -> AudioVisualSegmentationPipeline:
    """The pipeline of a checkpoint: the code is this package's, and no file of the checkpoint is run.

    Args:
        repo_or_folder: Hub id or local folder; `None`: the small weights that come with the package, which know the
            animals of `DEFAULT_MODEL` and their sounds and nothing else, for research that is not commercial.
        **kwargs: as for `transformers.pipeline`: `device`, `dtype`, `batch_size`, `proposal_generator`, `fps`, ...

    Raises:
        ValueError: files that are damaged or of another kind of model, or weights that do not fit.
        FileNotFoundError: the folder (or the bundled weights) does not exist.
        OSError: not a checkpoint, or not reachable.

    Examples:
        >>> result = combo_hf.load_pipeline()("clip.mp4")
        >>> [segment["label"] for segment in result["frames"][0]["segments"]]
        ['dog']
    """
    from .pipeline_combo import AudioVisualSegmentationPipeline

    register()
    return AudioVisualSegmentationPipeline.from_pretrained(resolve_model(repo_or_folder), **kwargs)


def resolve_model(repo_or_folder: str | Path | None = None) -> str:
    """Folder or Hub id as `from_pretrained` takes it; `None` is `DEFAULT_MODEL`. A misspelt folder is found here.

    `combo_hf/assets/demo` and `combo_hf/assets/real`, as the documents name the bundled weights, are found from any
    folder.

    Raises:
        FileNotFoundError: neither a checkpoint's folder nor of the form `org/name`.
    """
    source = Path(DEFAULT_MODEL if repo_or_folder is None else repo_or_folder)
    if not source.exists() and source.parts[:-1] == ("combo_hf", "assets"):
        source = ASSETS / source.name
    if source.is_dir():
        if not (source / "config.json").is_file():
            raise FileNotFoundError(f"{source}: no checkpoint, config.json is missing.")
        return str(source)
    if repo_or_folder is None:
        raise FileNotFoundError(f"the bundled weights are missing from {source}; reinstall combo-hf or name a model.")
    name = str(repo_or_folder)
    if isinstance(repo_or_folder, Path) or name.count("/") != 1 or name[0] in "./~":
        raise FileNotFoundError(f"{name}: no such folder; give a folder with config.json or a Hub id (org/name).")
    return name


def _check_torchaudio() -> None:
    """One clear error where a torchaudio does not fit torch: deep inside transformers it would be an OSError."""
    if importlib.util.find_spec("torchaudio") is None:
        return
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        found = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchaudio"))
        reason = str(error).partition("\n")[0]
    else:
        return
    raise ImportError(
        f"transformers imports torchaudio where there is one, and here it does not load: {found} ({reason}). "
        "combo_hf does not need it: pip uninstall torchaudio. Or install one that was built for this torch."
    )


@cache
def register() -> None:
    """Make transformers' Auto classes and `pipeline` know COMBO. Done by the import; again, it does nothing.

    Raises:
        ImportError: torch and torchaudio do not fit each other.
    """
    _check_torchaudio()
    from transformers import (
        AutoConfig,
        AutoFeatureExtractor,
        AutoImageProcessor,
        AutoModel,
        AutoModelForUniversalSegmentation,
        AutoProcessor,
    )
    from transformers.pipelines import PIPELINE_REGISTRY

    from .configuration_combo import ComboConfig
    from .feature_extraction_combo import ComboFeatureExtractor
    from .image_processing_combo import ComboImageProcessor
    from .modeling_combo import ComboForAudioVisualSegmentation
    from .pipeline_combo import AudioVisualSegmentationPipeline
    from .processing_combo import ComboProcessor

    AudioVisualSegmentationPipeline.make_result = staticmethod(
        lambda *parts: importlib.import_module(f"{__name__}.results.result").SegmentationResult(*parts)
    )
    AutoConfig.register("combo", ComboConfig, exist_ok=True)
    # A remote-code pipeline can only name a class of transformers: AutoModel gives the model that the task needs.
    AutoModel.register(ComboConfig, ComboForAudioVisualSegmentation, exist_ok=True)
    AutoModelForUniversalSegmentation.register(ComboConfig, ComboForAudioVisualSegmentation, exist_ok=True)
    backends: dict[str, type] = dict.fromkeys(("pil", "torchvision"), ComboImageProcessor)  # whichever is asked for
    AutoImageProcessor.register(ComboConfig, image_processor_classes=backends, exist_ok=True)
    AutoFeatureExtractor.register(ComboConfig, ComboFeatureExtractor, exist_ok=True)
    AutoProcessor.register(ComboConfig, ComboProcessor, exist_ok=True)
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        # A local folder takes the place of the repository: transformers.pipeline(task) works offline.
        PIPELINE_REGISTRY.register_pipeline(
            TASK,
            pipeline_class=AudioVisualSegmentationPipeline,
            pt_model=AutoModel,
            default={"model": (str(DEFAULT_MODEL), "main")},
            type="multimodal",
        )
        # "No model was supplied, defaulted to ..." is meant for defaults on the Hub, which may move.
        own = f"defaulted to {DEFAULT_MODEL} "
        logging.getLogger("transformers.pipelines").addFilter(lambda record: own not in record.getMessage())


def _is_worker() -> bool:
    """Whether this is a process of `combo_hf.files.pool`, which most often paints or packs and needs no network."""
    processes = sys.modules.get("multiprocessing.process")  # imported in all processes that have a parent
    return processes is not None and processes.current_process().name == "combo_hf worker"


def _is_command() -> bool:
    """Whether this process was started as `combo-hf` or `python -m combo_hf` (its worker processes are not)."""
    program, words = sys.argv[0], sys.orig_argv
    if program == "-m":
        return words[words.index("-m") + 1 :][:1] == [__name__]
    return program in words and Path(program).stem == "combo-hf"


if not (_is_command() or _is_worker()):
    register()
