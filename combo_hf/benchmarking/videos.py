"""Cases of whole videos: decoding, `predict` with its stages, and memory against length."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from combo_hf import AudioVisualSegmentationPipeline, ComboFeatureExtractor, ComboImageProcessor, ComboProcessor
from combo_hf.benchmarking.cases import Case, Settings, TemporaryFolder, make_model
from combo_hf.benchmarking.machine import Machine
from combo_hf.benchmarking.report import Result
from combo_hf.benchmarking.timing import Variant, peak_bytes, synchronize


SIZE, QUICK_SIZE = (1280, 720), (160, 96)
SOUND_RATE = 44100
STAGES = ("decoding", "proposals", "network inputs", "network", "label maps")


def video_cases() -> list[Case]:
    """All cases of this file, in the order of the table."""
    return [
        Case("video/decode 10 s, 720p", decode_variants, False, same_pictures),
        Case("video/predict 60 s, 720p, r50", measure=partial(predict_stages, backbone="r50"), gpu=True),
        Case("video/predict 60 s, 720p, pvtv2-b5", measure=partial(predict_stages, backbone="pvtv2-b5"), gpu=True),
        Case("video/memory, 60 s and 600 s", measure=predict_memory),
    ]


def write_video_file(path: Path, seconds: int, size: tuple[int, int] = SIZE, fps: int = 25) -> Path:
    """A video with sound: discs that move over a picture of soft colours and grain."""
    import av

    width, height = size
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(40, 200, (9, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    ground = np.clip(np.asarray(coarse) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        for index in range(seconds * fps):
            picture = ground.copy()
            for disc in range(3):
                angle = index / fps * (0.5 + 0.3 * disc) + 2 * disc
                centre = width / 2 * (1 + 0.6 * np.cos(angle)), height / 2 * (1 + 0.6 * np.sin(1.3 * angle))
                inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (height / 8) ** 2
                picture[inside] = ((disc * 90 + 60) % 256, 220 - disc * 80, 40 + disc * 70)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            if index % fps == 0:
                sound = (0.1 * rng.standard_normal((2, SOUND_RATE))).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = SOUND_RATE, index // fps * SOUND_RATE
                container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def decode_variants(settings: Settings) -> list[Variant]:
    """One picture a second and the sound: every picture made RGB first (plain), or only those that are needed."""
    from combo_hf.media_combo import FRAME_OFFSET, read_clip

    folder = TemporaryFolder()
    video = write_video_file(folder.path / "video.mp4", *((2, QUICK_SIZE) if settings.quick else (10, SIZE)))

    def plain(folder: TemporaryFolder = folder) -> list[np.ndarray]:
        import av

        with av.open(str(video)) as container:
            pictures = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        with av.open(str(video)) as container:
            resampler = av.AudioResampler("flt", rate=16000)
            for frame in container.decode(audio=0):
                resampler.resample(frame)
        seconds = round(pictures[-1][0] + 0.04)
        times = np.array([time for time, _ in pictures])
        return [pictures[int(np.flatnonzero(times <= second + FRAME_OFFSET)[-1])][1] for second in range(seconds)]

    def ours(folder: TemporaryFolder = folder) -> list[np.ndarray]:
        return [np.asarray(frame) for frame in read_clip(video).frames]

    return [Variant("plain", plain), Variant("default", ours)]


def same_pictures(wanted: list[np.ndarray], got: list[np.ndarray]) -> str:
    """Number of pictures, and their mean difference in grey levels."""
    difference = [np.abs(a.astype(int) - b).mean() for a, b in zip(wanted, got, strict=False)]
    return f"{len(wanted)} and {len(got)} pictures, mean difference {np.mean(difference):.1f} of 255"


def predict_stages(settings: Settings, machine: Machine, case: str, backbone: str) -> list[Result]:
    """`combo-hf predict` of a video: the whole, and how much of it each stage takes."""
    from combo_hf.results.folder import predict_to_folder

    with tempfile.TemporaryDirectory(prefix="combo-benchmark-") as folder:
        video = write_video_file(Path(folder) / "video.mp4", *((3, QUICK_SIZE) if settings.quick else (60, SIZE)))
        pipe = make_pipeline(backbone, settings)
        with stage_clocks(pipe, settings.device) as clocks:
            wall, cpu = time.perf_counter(), time.process_time()
            predict_to_folder(pipe, video, Path(folder) / "out", fps=1)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stages = {**clocks, "writing the video": (wall - sum(w for w, _ in clocks.values()),
                                              cpu - sum(c for _, c in clocks.values()))}  # fmt: skip
    others = wall - clocks["network"][0], cpu - clocks["network"][1]
    lines = {"whole": (wall, cpu), **stages, "all but the network": others}
    return [
        Result(case, name, own_wall, own_cpu, wall / max(own_wall, 1e-9), cpu / max(own_cpu, 1e-9),
               note=f"{100 * own_wall / wall:.0f} % of wall, {100 * own_cpu / cpu:.0f} % of CPU")
        for name, (own_wall, own_cpu) in lines.items()
    ]  # fmt: skip


def make_pipeline(backbone: str, settings: Settings) -> AudioVisualSegmentationPipeline:
    """A pipeline with the default proposals over random weights."""
    model = make_model(backbone, settings)
    side = model.config.image_size
    images = ComboImageProcessor(size={"height": side, "width": side})
    processor = ComboProcessor(images, ComboFeatureExtractor(), proposal_generator="superpixels")
    return AudioVisualSegmentationPipeline(model=model, processor=processor, device=settings.device)


@contextmanager
def stage_clocks(
    pipe: AudioVisualSegmentationPipeline, device: str = "cpu"
) -> Iterator[dict[str, tuple[float, float]]]:
    """Wall and CPU seconds of the stages of everything that `pipe` does inside the context, of its thread alone: the
    video is written beside it. With several threads of torch the wall time tells more."""
    from combo_hf import pipeline_combo_inputs

    spent = dict.fromkeys(STAGES, (0.0, 0.0))

    def add(stage: str, begin: tuple[float, float], sign: int = 1) -> None:
        wall, cpu = time.perf_counter() - begin[0], time.thread_time() - begin[1]
        spent[stage] = spent[stage][0] + sign * wall, spent[stage][1] + sign * cpu

    def clocked(stage: str, call: Callable, inside: str | None = None) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter(), time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                synchronize(device)
                add(stage, begin)
                if inside is not None:
                    add(inside, begin, -1)

        return run

    def clips(*args: Any, **kwargs: Any) -> Iterator[Any]:
        source = iter(iter_clips(*args, **kwargs))
        following = clocked("decoding", lambda: next(source, None))
        while (clip := following()) is not None:
            yield clip

    iter_clips, processor = pipeline_combo_inputs.iter_clips, pipe.processor
    assert isinstance(processor, ComboProcessor)
    call, propose = ComboProcessor.__call__, clocked("proposals", processor._propose, inside="network inputs")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(pipeline_combo_inputs, "iter_clips", clips))
        stack.enter_context(mock.patch.object(ComboProcessor, "__call__", clocked("network inputs", call)))
        stack.enter_context(mock.patch.object(processor, "_propose", propose))
        for name in ("forward", "embed_audio"):
            stack.enter_context(mock.patch.object(pipe.model, name, clocked("network", getattr(pipe.model, name))))
        for name in ("_label", "_segments"):
            stack.enter_context(mock.patch.object(pipe, name, clocked("label maps", getattr(pipe, name))))
        yield spent


def predict_memory(settings: Settings, machine: Machine, case: str) -> list[Result]:
    """Growth of the process while it predicts a short and a ten times longer video, by the bundled weights."""
    from combo_hf import load_pipeline
    from combo_hf.results.folder import predict_to_folder

    pipe = load_pipeline(device="cpu")
    short, size = (2, QUICK_SIZE) if settings.quick else (60, SIZE)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="combo-benchmark-") as folder:
        warm = write_video_file(Path(folder) / "warm.mp4", 2, size, fps=5)
        predict_to_folder(pipe, warm, Path(folder) / "warm")  # what is loaded once is not growth
        for length in (short, 10 * short):
            video = write_video_file(Path(folder) / "video.mp4", length, size, fps=5)
            wall, cpu = time.perf_counter(), time.process_time()
            peak = peak_bytes(partial(predict_to_folder, pipe, video, Path(folder) / "out"))
            spent = time.perf_counter() - wall, time.process_time() - cpu
            first = results[0] if results else Result(case, "", *spent, 1, 1)
            results.append(
                Result(case, f"{length} s", *spent, first.wall / spent[0], first.cpu / spent[1], peak=peak,
                       note="bundled weights, 5 pictures a second")
            )  # fmt: skip
    return results
