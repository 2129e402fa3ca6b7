"""What sounds where, while it happens: a camera, a pipe, or a video that is played in real time.

python examples/live.py combo_hf/assets/demo_real.mp4            # a file, as a player would show it
python examples/live.py /dev/video0 --format v4l2                # a camera of Linux, without sound
ffmpeg -i rtsp://camera/stream -f mpegts - | python examples/live.py -
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

import combo_hf
from combo_hf.cli import Parser, run_script
from combo_hf.media_combo import SAMPLING_RATE


def played(container: av.container.InputContainer, in_real_time: bool) -> Iterator[tuple[float, np.ndarray, bool]]:
    """Time in s, then an RGB picture (H, W, 3) or samples (N,) at 16 kHz, and whether it is a picture."""
    resampler = av.AudioResampler(format="flt", rate=SAMPLING_RATE)
    begin, first = time.monotonic(), None
    for frame in container.decode(*container.streams.video[:1], *container.streams.audio[:1]):
        first = (frame.time or 0.0) if first is None else first
        now = (frame.time or 0.0) - first
        if in_real_time:
            time.sleep(max(0.0, begin + now - time.monotonic()))
        if isinstance(frame, av.VideoFrame):
            yield now, frame.to_ndarray(format="rgb24"), True
        else:
            for part in resampler.resample(frame):
                yield now, part.to_ndarray().reshape(part.samples, -1).mean(1), False


def tell(frames: list[dict[str, Any]], begin: float) -> None:
    """A line for every frame."""
    for frame in frames:
        found = ", ".join(f"{segment['label']} {segment['score']:.2f}" for segment in frame["segments"])
        now = time.monotonic() - begin
        print(f"{frame['timestamp']:.2f} s, told at {now:.2f} s: {found or 'nothing sounds'}", flush=True)


def main() -> None:
    """Print what sounds, second by second."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="file, device, address, or - for standard input")
    parser.add_argument("--format", help="of FFmpeg, where it cannot be told: v4l2, avfoundation, dshow, mpegts, ...")
    parser.add_argument("--fps", type=int, default=1, help="frames per second to segment")
    parser.add_argument("--model", help="folder or Hub id; default: the bundled weights")
    parser.add_argument("--fast", action="store_true", help="do not wait: read as fast as it comes")
    arguments = parser.parse_args()
    pipe = combo_hf.load_pipeline(arguments.model)
    source = sys.stdin.buffer if arguments.source == "-" else arguments.source
    with av.open(source, format=arguments.format) as container:
        live = combo_hf.LiveSegmenter(pipe, arguments.fps, has_audio=bool(container.streams.audio))
        print(f"a result comes at most {live.delay} s after its picture, and the time of computing")
        begin = time.monotonic()
        for now, values, is_picture in played(container, not arguments.fast):
            tell(live.push_picture(now, values) if is_picture else live.push_sound(values), begin)
    tell(live.close(), begin)


if __name__ == "__main__":
    sys.exit(run_script(main))
