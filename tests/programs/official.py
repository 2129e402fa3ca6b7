"""The official release and this package alive in one process, timed in alternation on the same weights and inputs.

    python tests/programs/official.py --release ../COMBO-AVS --detectron2 ../detectron2 [--only eval/r50 step/r50]

Neither is part of this repository: the release is a checkout of COMBO-AVS, detectron2 the folder that holds its
package `detectron2` and its `projects` (Python files are enough, nothing is compiled). Both need yacs, fvcore, iopath,
timm, omegaconf, pycocotools and resampy besides what this package needs. On a processor the release falls back to the
plain PyTorch of its deformable attention by itself; what it moves to a GPU by `.cuda()` stays where it is.

`--as-on-amd` keeps MKL to AVX2, the path that it takes on processors of other makers than Intel, and lets this package
choose oneDNN as it does there. Times are CPU seconds of one thread; with more `--threads`, seconds by the clock.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.machinery
import itertools
import os
import pickle
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from combo_hf import ComboFeatureExtractor, ComboImageProcessor, modeling_combo_kernels, paint_maskige
from combo_hf.benchmarking.timing import Variant, compare, ratio
from combo_hf.conversion.official import convert_official_checkpoint
from combo_hf.data.avsbench import build_dataset
from combo_hf.data.clips import AvsbenchClips
from combo_hf.data.loading import load_avsbench
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.data.transforms import build_transform
from combo_hf.label_maps_combo import leading_class
from combo_hf.metrics.functional import SemanticScores
from combo_hf.training.optimizer import build_optimizer


NETWORKS = {
    "r50": ("configs/avs_s4/COMBO_R50_bs8_90k.yaml", "r50-s4"),
    "pvtv2-b5": ("configs/avs_s4/COMBO_PVTV2B5_bs8_90k.yaml", "pvtv2-b5-s4"),
    "r50-avss": ("configs/avs_ss/COMBO_R50_bs8_90k.yaml", "r50-avss"),
}
FRAMES, SIDE = 5, 224
Pair = tuple[Callable[[], Any], Callable[[], Any], Callable[[Any, Any], str]]  # the release, ours, how they agree


class Missing(types.ModuleType):
    """A compiled module that is not there; calling any of its functions is an error."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError(f"{self.__name__}.{name} is not compiled here")

        return absent


class Release:
    """The modules of the release, without those of its packages that import what is not needed here."""

    def __init__(self, folder: Path, detectron2: Path) -> None:
        self.folder = folder
        sys.path[:0] = [str(detectron2)]
        for name in ("detectron2._C", "MultiScaleDeformableAttention"):
            module = Missing(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = module
        import PIL.Image

        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]  # names of old versions
        for name, kind in {"bool": bool, "float": float, "int": int, "object": object}.items():
            if name not in vars(np):
                setattr(np, name, kind)
        torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
        for name in ("models", "models.evaluation", "models.data", "models.data.dataset_mappers"):
            package = types.ModuleType(name)
            package.__path__ = [str(folder / name.replace(".", "/"))]
            sys.modules[name] = package

    def module(self, name: str) -> Any:
        return importlib.import_module(name)

    def config(self, path: str) -> Any:
        from detectron2.config import get_cfg
        from detectron2.projects.deeplab import add_deeplab_config

        self.module("models.modeling"), self.module("models.maskformer_model")
        config, own = get_cfg(), self.module("models.config")
        for add in (add_deeplab_config, own.add_audio_config, own.add_fuse_config, own.add_maskformer2_config):
            add(config)
        config.merge_from_file(str(self.folder / path), allow_unsafe=True)
        config.MODEL.AUDIO.FREEZE_AUDIO_EXTRACTOR = False  # would read the weights of VGGish
        config.MODEL.DEVICE = "cpu"
        return config

    def network(self, path: str) -> Any:
        from detectron2.modeling import build_model

        torch.manual_seed(0)
        model = build_model(self.config(path))
        for weights in model.audio_backbone.parameters():
            weights.requires_grad_(False)
        return model


def networks(release: Release, name: str) -> tuple[Any, Any, dict[str, Any], dict[str, torch.Tensor]]:
    """The official network, ours with its weights, and the inputs of both."""
    path, preset = NETWORKS[name]
    official = release.network(path).eval()
    ours, _ = convert_official_checkpoint(official.state_dict(), preset)
    rng = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, FRAMES, 3, 14, 14, generator=rng)
    frames, maskiges = (
        torch.nn.functional.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear") * 255 for pictures in coarse
    )
    sound = torch.randn(FRAMES, 1, 96, 64, generator=rng)
    batch = {"images": frames, "pre_masks": maskiges, "audio_log_mel": sound, "height": SIDE, "width": SIDE}
    if name == "r50-avss":
        batch |= {"vid_temporal_mask_flag": torch.ones(FRAMES), "gt_temporal_mask_flag": torch.ones(FRAMES)}
    inputs = {
        "pixel_values": (frames - official.pixel_mean) / official.pixel_std,
        "maskige_values": (maskiges - official.pixel_mean) / official.pixel_std,
        "input_features": sound,
        "num_frames": torch.tensor([FRAMES]),
    }
    return official, ours, batch, inputs


def evaluation(release: Release, name: str) -> Pair:
    """Five frames to their label maps."""
    official, ours, batch, inputs = networks(release, name)
    processor = ComboImageProcessor()

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            return torch.stack([frame["sem_seg"].argmax(0) for frame in official([batch])])

    def mine() -> torch.Tensor:
        with torch.no_grad():
            return processor.post_process_semantic_segmentation(ours(**inputs), [FRAMES], [(SIDE, SIDE)])[0]

    return theirs, mine, lambda wanted, got: f"labels {100 * (wanted == got).float().mean():.2f} % equal"


def training_step(release: Release, name: str) -> Pair:
    """One clip whose first frame is annotated; AdamW with the gradient clipped."""
    from detectron2.structures import Instances

    official, ours, batch, inputs = networks(release, name)
    official.train(), ours.train()
    masks = torch.zeros(2, SIDE, SIDE)
    masks[1, 60:150, 40:170] = 1
    masks[0] = 1 - masks[1]
    target = Instances((SIDE, SIDE), gt_classes=torch.tensor([0, 1]), gt_masks=masks.bool())
    batch["instances"] = [target]
    groups = [{"params": [weights]} for weights in official.parameters() if weights.requires_grad]
    their_optimizer = torch.optim.AdamW(groups, 1e-5, weight_decay=0.05)
    trained = [weights for weights in ours.parameters() if weights.requires_grad]
    our_optimizer = build_optimizer([{"params": trained, "lr": 1e-5, "weight_decay": 0.05}])
    annotated = torch.arange(FRAMES) < 1

    def theirs() -> float:
        torch.manual_seed(0)
        loss = sum(official([batch]).values())
        their_optimizer.zero_grad()
        loss.backward()
        everything = itertools.chain(*(group["params"] for group in their_optimizer.param_groups))
        torch.nn.utils.clip_grad_norm_(everything, 0.01)
        their_optimizer.step()
        return float(loss.detach())

    def mine() -> float:
        torch.manual_seed(0)
        labels = {"mask_labels": [masks], "class_labels": [target.gt_classes], "label_frames": annotated}
        loss = ours(**inputs, **labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.01)
        our_optimizer.step()
        our_optimizer.zero_grad()
        return float(loss.detach())

    return theirs, mine, lambda wanted, got: f"losses {wanted:.3f} and {got:.3f}, of other sampled points"


def log_mel(release: Release, rate: int) -> Pair:
    """Five seconds of noise; stereo, but at 16 kHz, where nothing is resampled."""
    front_end = release.module("models.modeling.audio_backbone.torchvggish.vggish_input")
    extractor = ComboFeatureExtractor()
    sound = 0.1 * np.random.default_rng(0).standard_normal((5 * rate, 1 if rate == 16000 else 2))

    def theirs() -> torch.Tensor:
        return front_end.waveform_to_examples(sound, rate).detach()

    def mine() -> torch.Tensor:
        return extractor(sound, sampling_rate=rate, num_frames=5).input_features

    return theirs, mine, lambda wanted, got: f"largest difference {(wanted - got).abs().max():.0e}"


def maskige(release: Release, count: int, kind: str) -> Pair:
    """Masks of 640 x 360 to a Maskige: the loop of the release's script, without its reading and writing of files."""
    script = ast.parse((release.folder / "avs_tools/pre_mask2rgb/mask_precess_s4.py").read_text(encoding="utf-8"))
    loops = [node for node in ast.walk(script) if isinstance(node, ast.For)]
    (loop,) = (node for node in loops if ast.unparse(node.target) == "(num_img, basename)")
    files = ("endswith", "suffix", "np.load", "makedirs", "save_base", "gt_file")
    body = [line for line in loop.body if not any(word in ast.unparse(line) for word in files)]
    palette = [node for node in script.body if isinstance(node, ast.FunctionDef)]
    names: dict[str, Any] = {"np": np, "Image": __import__("PIL.Image").Image, "max_idx": 0}
    exec(compile(ast.Module(palette, []), "palette", "exec"), names)
    code = compile(ast.Module(body, []), "loop", "exec")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:360, :640]
    sides, places = rng.uniform(8, (160, 90), (count, 2)), rng.uniform(0, (640, 360), (count, 2))
    circles = zip(sides, places, strict=True)
    masks = np.stack([((x - at[0]) / side[0]) ** 2 + ((y - at[1]) / side[1]) ** 2 < 1 for side, at in circles])
    masks = masks.astype(kind)

    def theirs() -> np.ndarray:
        names["pre_mask"] = masks
        exec(code, names)
        return np.array(names["mask"].convert("RGB"))

    return theirs, lambda: paint_maskige(masks, (SIDE, SIDE)), lambda wanted, got: f"equal: {(wanted == got).all()}"


def semantic_scores(release: Release) -> Pair:
    """Score maps of 71 classes of ten frames, to IoU and F-score of every class."""
    scorer = release.module("models.evaluation.sem_seg_evaluation_ss")
    rng = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 71, (10, 7, 7), generator=rng).repeat_interleave(32, 1).repeat_interleave(32, 2)
    coarse = torch.randn(10, 71, 14, 14, generator=rng)
    scores = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")

    def theirs() -> torch.Tensor:
        overlaps, _, frames, _ = scorer.calc_color_miou_fscore(scores, truth, T=10)
        return (overlaps / frames)[frames > 0].mean()

    def mine() -> float:
        return SemanticScores(71).update(leading_class(scores, 1)[0], truth).compute()["miou"]

    return theirs, mine, lambda wanted, got: f"mIoU {float(wanted):.6f} and {got:.6f}"


def training_samples(release: Release) -> Pair:
    """Eight clips of S4 with augmentation; the release unpickles the log-mel, ours computes it from the sound."""
    from detectron2.data import MetadataCatalog

    folder = tempfile.TemporaryDirectory(prefix="combo-official-")
    root = Path(folder.name)
    write_official(root, "s4", {"train": 8}, maskiges="superpixels")
    build_dataset(root, "s4", root / "built", splits=("train",))
    rows = load_avsbench(root / "built", "train", subset="s4", cache_dir=root / "cache")
    data = root / "AVSBench_object" / "Single-source" / "s4_data"
    MetadataCatalog.get("avss4_sem_seg_train").ignore_label = 255
    mappers = release.module("models.data.dataset_mappers.avss4_semantic_dataset_mapper")
    mapper = mappers.AVSS4_SemanticDatasetMapper(release.config(NETWORKS["r50"][0]), True)
    sound = root / "log_mel.pkl"
    sound.write_bytes(pickle.dumps(torch.zeros(FRAMES, 1, 96, 64)))
    records = []
    for clip in sorted(data.glob("visual_frames/train/*/*")):
        place, names = clip.relative_to(data / "visual_frames"), [f"{clip.name}_{second}" for second in range(1, 6)]
        colours = data / "pre_SAM_mask" / place
        records.append({
            "file_names": [str(clip / f"{name}.png") for name in names],
            "sem_seg_file_names": [str(data / "gt_masks" / place / f"{names[0]}.png")],
            "pre_mask_file_names": [str(colours / f"{name}_mask_color.png") for name in names],
            "audio_file_name": str(sound), "height": SIDE, "width": SIDE,
        })  # fmt: skip
    clips = AvsbenchClips(rows, build_transform("s4", True))
    kept = folder  # until the variants go

    def theirs() -> int:
        return len([mapper(record) for record in records])

    def mine() -> int:
        assert kept
        return len([clips[index] for index in range(len(records))])

    return theirs, mine, lambda wanted, got: f"{wanted} and {got} clips"


def cases(release: Release) -> dict[str, Callable[[], Pair]]:
    """All rows by name."""
    rows: dict[str, Callable[[], Pair]] = {f"eval/{name}": lambda n=name: evaluation(release, n) for name in NETWORKS}
    rows |= {f"step/{name}": lambda n=name: training_step(release, n) for name in ("r50", "pvtv2-b5")}
    rates = (8000, 16000, 22050, 24000, 32000, 44100, 48000)
    rows |= {f"log-mel/{rate} Hz": lambda r=rate: log_mel(release, r) for rate in rates}
    for count, kind in itertools.product((30, 100), ("bool", "uint8")):
        rows[f"maskige/{count} masks, {kind}"] = lambda c=count, k=kind: maskige(release, c, k)
    rows["scores/AVSS, 10 frames"] = lambda: semantic_scores(release)
    rows["samples/8 clips of S4"] = lambda: training_samples(release)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True, help="a checkout of COMBO-AVS")
    parser.add_argument("--detectron2", type=Path, required=True, help="the folder of the package detectron2")
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose names begin so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--as-on-amd", action="store_true")
    arguments = parser.parse_args()
    if arguments.as_on_amd:
        if os.environ.get("MKL_ENABLE_INSTRUCTIONS") != "AVX2":  # read when MKL is loaded
            os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"
            os.execv(sys.executable, [sys.executable, *sys.argv])
        modeling_combo_kernels._processor = lambda: "AuthenticAMD"  # type: ignore[assignment]
    warnings.simplefilter("ignore")  # those of the release
    torch.set_num_threads(arguments.threads)
    for name, build in cases(Release(arguments.release, arguments.detectron2)).items():
        if not name.startswith(tuple(arguments.only)):
            continue
        theirs, mine, agree = build()
        remark = agree(theirs(), mine())
        samples = compare([Variant("official", theirs), Variant("ours", mine)], arguments.rounds)
        clock = "cpu" if arguments.threads == 1 else "wall"
        official, ours = (samples[variant].median(clock) for variant in ("official", "ours"))
        pairs = zip(*(getattr(samples[variant], clock) for variant in ("official", "ours")), strict=True)
        ratios = sorted(one / other for one, other in pairs)
        times = f"{1e3 * official:9.2f} ms {1e3 * ours:9.2f} ms"
        median = ratio(samples["official"], samples["ours"], clock)
        print(f"{name:24s} {times}  {median:6.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})  {remark}", flush=True)


if __name__ == "__main__":
    main()
