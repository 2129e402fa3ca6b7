"""Small films made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from combo_hf.media_combo import (
    SAMPLING_RATE,
    read_clip,
)


SIZE = (64, 48)


def numbered(count: int, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    """Grey pictures; `number` reads which one it is."""
    for index in range(count):
        yield np.full((size[1], size[0], 3), 20 + 3 * (index % 75), np.uint8)


def number(image: Image.Image) -> int:
    return round((float(np.asarray(image).mean()) - 20) / 3)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Sound that AAC keeps well: low-passed noise."""
    samples = np.random.default_rng(seed).standard_normal(int(seconds * SAMPLING_RATE))
    return (np.convolve(samples, np.hanning(32) / 16, "same") * 0.1).astype(np.float32)


def encode(path: Path, times_ms: list[int]) -> Path:
    """A film with a picture at each of these times."""
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times_ms, numbered(len(times_ms)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            film.mux(stream.encode(frame))
        film.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, sound_delay: float = 0.0, silent: tuple[float, float] = (0, 0)) -> Path:
    """Copy a film with its sound later, or without the sound of some seconds."""
    with av.open(str(source)) as film, av.open(str(target), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in film.streams}
        for packet in film.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                if silent[0] <= float(packet.pts * packet.time_base) < silent[1]:
                    continue
                ticks = round(sound_delay / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            packet.stream = streams[packet.stream.index]
            output.mux(packet)
    return target


def damage(source: Path, target: Path, packets: range) -> Path:
    """Overwrite the sizes inside some packets of the pictures."""
    with av.open(str(source)) as film:
        places = [packet.pos for packet in film.demux(video=0) if packet.size]
    data = bytearray(source.read_bytes())
    for index in packets:
        data[places[index] : places[index] + 8] = b"\xff" * 8
    target.write_bytes(data)
    return target


def maps(film: Path, label: int = 3) -> Iterator[tuple[float, np.ndarray]]:
    """The left half of each second."""
    for time in read_clip(film).times:
        label_map = np.zeros(SIZE[::-1], np.uint8)
        label_map[:, : SIZE[0] // 2] = label
        yield time, label_map


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24").astype(int) for frame in film.decode(video=0)]
