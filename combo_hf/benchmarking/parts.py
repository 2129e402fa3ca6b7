"""Cases of the parts around the network: sound, Maskiges, scores, loader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from combo_hf.benchmarking import reference_parts
from combo_hf.benchmarking.cases import Case, Settings, TemporaryFolder, largest_difference
from combo_hf.benchmarking.timing import Variant
from combo_hf.data.clips import AvsbenchClips
from combo_hf.data.collate import ClipExample, ComboCollator
from combo_hf.data.loading import load_avsbench
from combo_hf.data.synthetic.official_folders import write_official
from combo_hf.data.transforms import build_transform, turn_hue
from combo_hf.feature_extraction_combo import ComboFeatureExtractor
from combo_hf.maskige_combo import paint_maskige
from combo_hf.metrics.functional import SemanticScores, f_measure
from combo_hf.proposals_combo import SuperpixelProposals


PICTURE = (360, 640)  # height and width
SIDE = 224


def part_cases() -> list[Case]:
    """All cases of this file, in the order of the table."""
    return [
        Case("log-mel/5 s, 44.1 kHz stereo", partial(log_mel_variants, rate=44100), False, largest_difference),
        Case("log-mel/5 s, 48 kHz stereo", partial(log_mel_variants, rate=48000), False, largest_difference),
        Case("log-mel/5 s, 16 kHz", partial(log_mel_variants, rate=16000), False, largest_difference),
        Case("maskige/30 masks", partial(maskige_variants, count=30), False, largest_difference),
        Case("maskige/100 masks", partial(maskige_variants, count=100), False, largest_difference),
        Case("maskige/superpixels of 720p", superpixel_variants, False, largest_difference),
        Case("colours/hue of a clip", hue_variants, True, largest_difference),
        Case("scores/M_F of 5 frames", f_measure_variants, True, largest_difference),
        Case("scores/AVSS, 10 frames", semantic_variants, True, largest_difference),
        Case("loader/8 clips", loader_variants, False, largest_difference),
    ]


def log_mel_variants(settings: Settings, rate: int) -> list[Variant]:
    """Five seconds of sound to log-mel examples."""
    rng, seconds = np.random.default_rng(settings.seed), 1 if settings.quick else 5
    shape = (seconds * rate, 2) if rate != 16000 else (seconds * rate,)
    sound = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    extractor = ComboFeatureExtractor()
    moved = sound.nbytes + seconds * 96 * 64 * 4
    return [
        Variant("plain", lambda: reference_parts.log_mel(sound, rate, seconds), bytes=moved),
        Variant("default", lambda: extractor(sound, rate, num_frames=seconds)["input_features"][:, 0], bytes=moved),
    ]


def maskige_variants(settings: Settings, count: int) -> list[Variant]:
    """One picture of 640 x 360 with random ellipses."""
    rng = np.random.default_rng(settings.seed)
    y, x = np.mgrid[: PICTURE[0], : PICTURE[1]]
    masks = np.stack([_ellipse(rng, x, y) for _ in range(count)])
    size = (SIDE, SIDE)
    moved = masks.nbytes + 3 * SIDE * SIDE
    return [
        Variant("plain", lambda: reference_parts.paint(masks, size), bytes=moved),
        Variant("default", lambda: paint_maskige(masks, size), bytes=moved),
    ]


def superpixel_variants(settings: Settings) -> list[Variant]:
    """A picture of 1280 x 720 to its Maskige: masks painted (plain), or straight from the numbers of the segments."""
    rng = np.random.default_rng(settings.seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    picture, size = coarse.resize((1280, 720), Image.Resampling.BICUBIC), (SIDE, SIDE)
    generator = SuperpixelProposals()
    return [
        Variant("plain", lambda: paint_maskige(generator([picture])[0], size), bytes=3 * 1280 * 720),
        Variant("default", lambda: generator.maskige(picture, size), bytes=3 * 1280 * 720),
    ]


def hue_variants(settings: Settings) -> list[Variant]:
    """The hue of five pictures of 224 x 224 by torchvision (plain) and by the augmentation."""
    from torchvision.transforms.v2.functional import adjust_hue

    pictures = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(settings.seed))
    return [Variant("plain", lambda: adjust_hue(pictures, 0.05)), Variant("default", lambda: turn_hue(pictures, 0.05))]


def _ellipse(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    height, width = PICTURE
    a, b = rng.uniform(8, width / 4), rng.uniform(8, height / 4)
    centre = rng.uniform(0, width), rng.uniform(0, height)
    return ((x - centre[0]) / a) ** 2 + ((y - centre[1]) / b) ** 2 < 1


def f_measure_variants(settings: Settings) -> list[Variant]:
    """M_F of a video of five frames of 224 x 224."""
    rng = torch.Generator().manual_seed(settings.seed)
    scores = torch.rand(5, SIDE, SIDE, generator=rng)
    target = torch.rand(5, SIDE, SIDE, generator=rng) > 0.7
    return [
        Variant("plain", lambda: reference_parts.f_measure(scores, target)),
        Variant("default", lambda: f_measure(scores, target)),
    ]


def semantic_variants(settings: Settings) -> list[Variant]:
    """Mean IoU of 71 classes of a video of ten frames of 224 x 224."""
    rng = torch.Generator().manual_seed(settings.seed)
    target = torch.randint(0, 71, (10, SIDE // 32, SIDE // 32), generator=rng)
    target = target.repeat_interleave(32, 1).repeat_interleave(32, 2)
    prediction = target.roll(5, dims=2)
    return [
        Variant("plain", lambda: reference_parts.semantic_scores(prediction, target, 71)),
        Variant("default", lambda: SemanticScores(71).update(prediction, target).compute()["miou"]),
    ]


def loader_variants(settings: Settings) -> list[Variant]:
    """Eight clips of S4 from the official folders picture by picture, and from built rows; no other process."""
    from combo_hf.data.avsbench import build_dataset

    folder = TemporaryFolder()
    root, count = folder.path, 2 if settings.quick else 8
    write_official(root, "s4", {"train": count}, maskiges="superpixels")
    build_dataset(root, "s4", root / "built", splits=("train",))
    rows = load_avsbench(root / "built", "train", subset="s4", cache_dir=root / "cache")
    collate = ComboCollator()
    kept = [folder]  # the folder goes when the variants go

    def epoch(clips: Any) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            assert kept
            return collate([clips[index] for index in range(count)])["pixel_values"]

        return run

    training = AvsbenchClips(rows, build_transform("s4", True))
    return [
        Variant("plain", epoch(OfficialFolders(root))),
        Variant("default", epoch(AvsbenchClips(rows))),
        Variant("with augmentation", epoch(training)),
    ]


class OfficialFolders(torch.utils.data.Dataset):
    """The training folders of S4, every picture opened by PIL as it is, no augmentation."""

    def __init__(self, root: Path) -> None:
        self.root = root / "AVSBench_object" / "Single-source" / "s4_data"
        self.clips = sorted(self.root.glob("visual_frames/train/*/*"), key=lambda folder: folder.name)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> ClipExample:
        import soundfile

        clip = self.clips[index]
        place = clip.relative_to(self.root / "visual_frames")
        names = [f"{clip.name}_{number}" for number in range(1, 6)]
        colours = self.root / "pre_SAM_mask" / place
        frames = _pictures([clip / f"{name}.png" for name in names])
        maskiges = _pictures([colours / f"{name}_mask_color.png" for name in names])
        mask = np.array(Image.open(self.root / "gt_masks" / place / f"{names[0]}.png").convert("L")) > 127
        waveform, rate = soundfile.read(self.root / "audio_wav" / f"{place}.wav", dtype="float32")
        truth = torch.from_numpy(mask[None].astype(np.uint8))
        return ClipExample(clip.name, frames, maskiges, self.features(waveform, rate), truth, torch.arange(5) < 1)

    def features(self, waveform: np.ndarray, rate: int) -> torch.Tensor:
        """Log-mel (5, 1, 96, 64) of a clip."""
        return torch.from_numpy(reference_parts.log_mel(waveform, rate, 5))[:, None]


def _pictures(paths: list[Path]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.array(Image.open(path).convert("RGB")) for path in paths])).permute(
        0, 3, 1, 2
    )
