"""Whatever a player plays: videos of every kind come out as a player shows them, and so does the overlay."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from combo_hf.media_combo import MediaError, load_audio, probe_media, read_clip
from combo_hf.media_combo_shown import BT709, HLG, PQ, sdr_colours
from combo_hf.results.video import write_overlay_video


SIZE = (64, 48)
# Quarters of the test picture: top left, top right, bottom left, bottom right.
QUARTERS = np.array([[[200, 40, 40], [40, 180, 60]], [[50, 60, 200], [190, 190, 60]]], np.uint8)
RATE = 10


def quarters(size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3), four flat colours."""
    return np.repeat(np.repeat(QUARTERS, size[1] // 2, axis=0), size[0] // 2, axis=1)


def tone(seconds: float, rate: int = 48000) -> np.ndarray:
    """A beep of 0.2 s at the start of every second, (N,)."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 880 * time) * (time % 1 < 0.2)).astype(np.float32)


def sound_frames(samples: np.ndarray, layout: str, rate: int, size: int = 1024) -> Iterator[av.AudioFrame]:
    channels = av.AudioLayout(layout).nb_channels
    for start in range(0, len(samples), size):
        part = samples[start : start + size]
        packed = np.repeat(part, channels)[None]  # PyAV 18.1 cannot fill planar frames of eight channels
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def make(
    path: Path,
    pictures: list[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sounds: tuple[tuple[np.ndarray, str], ...] = (),
    sound_codec: str = "aac",
    rate: int = RATE,
    options: dict[str, str] | None = None,
    source: str = "rgb24",
    **tags: object,
) -> Path:
    """A video; `tags` are attributes of the encoder."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        tracks = [output.add_stream(sound_codec, rate=48000, layout=layout) for _, layout in sounds]
        for track in tracks:
            track.bit_rate = 128_000 * track.codec_context.channels
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format=source)
            if frame.format.name != pixels:
                matrix = {"dst_colorspace": tags["colorspace"]} if tags.get("colorspace", 2) != 2 else {}
                frame = frame.reformat(format=pixels, dst_color_range=tags.get("color_range") or 1, **matrix)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for (samples, layout), track in zip(sounds, tracks, strict=True):
            for sound in sound_frames(samples, layout, 48000):
                output.mux(track.encode(sound))
            output.mux(track.encode(None))
    return path


def corners(image: Image.Image | np.ndarray) -> np.ndarray:
    """Colours in the middle of the quarters, (2, 2, 3)."""
    array = np.asarray(image).astype(int)
    height, width = array.shape[:2]
    return array[height // 4 :: height // 2, width // 4 :: width // 2][:2, :2]


def empty_maps(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    clip = read_clip(path)
    for time in clip.times:
        yield time, np.zeros(clip.frames[0].size[::-1], np.uint8)


def check(
    path: Path, expected: np.ndarray, tmp_path: Path, tolerance: float = 8, shown: tuple[int, int] = SIZE
) -> None:
    """The network's picture, and the untouched overlay."""
    clip = read_clip(path)
    assert clip.frames[0].size == shown == (probe_media(path).width, probe_media(path).height)
    assert np.abs(corners(clip.frames[0]) - expected).max() <= tolerance
    overlay = write_overlay_video(path, tmp_path / "overlay.mp4", empty_maps(path))
    again = read_clip(overlay)
    assert again.frames[0].size == (shown[0] + shown[0] % 2, shown[1] + shown[1] % 2)
    assert np.abs(corners(again.frames[0]) - corners(clip.frames[0])).max() <= 5
    assert len(again.frames) == len(clip.frames)


ORIENTATIONS = {  # what the matrix does to the quarters
    "upright": ((1, 0, 0, 1), lambda q: q),
    "half turn": ((-1, 0, 0, -1), lambda q: q[::-1, ::-1]),
    "quarter turn right": ((0, 1, -1, 0), lambda q: np.rot90(q, -1)),
    "quarter turn left": ((0, -1, 1, 0), lambda q: np.rot90(q)),
    "mirrored": ((-1, 0, 0, 1), lambda q: q[:, ::-1]),
    "flipped": ((1, 0, 0, -1), lambda q: q[::-1]),
    "transposed": ((0, 1, 1, 0), lambda q: q.transpose(1, 0, 2)),
    "transversed": ((0, -1, -1, 0), lambda q: q[::-1, ::-1].transpose(1, 0, 2)),
}


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    a, b, c, d = (value << 16 if value >= 0 else (value << 16) & 0xFFFFFFFF for value in matrix)
    data[header + 40 : header + 76] = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("size", [SIZE, (62, 46)])
def test_orientations(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    matrix, move = ORIENTATIONS[name]
    path = make(tmp_path / "a.mp4", [quarters(size)] * RATE)
    turn(path, matrix)
    check(path, move(QUARTERS.astype(int)), tmp_path, shown=size if matrix[0] else size[::-1])


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [
        (Fraction(64, 45), (91, 48)), (Fraction(8, 9), (57, 48)), (Fraction(2), (128, 48)), (Fraction(1, 2), (32, 48)),
        (Fraction(1), SIZE), (Fraction(1000), SIZE),  # damage
    ],
)  # fmt: skip
@pytest.mark.parametrize(("codec", "ending"), [("libx264", "mp4"), ("mpeg2video", "mpg"), ("libx264", "mkv")])
def test_pixels_that_are_not_square(
    tmp_path: Path, aspect: Fraction, shown: tuple[int, int], codec: str, ending: str
) -> None:
    if codec == "mpeg2video":
        if aspect in (Fraction(1), Fraction(1000), Fraction(1, 2), Fraction(2)):
            pytest.skip("MPEG-2 knows a few aspects of the whole picture only")
        aspect, shown = Fraction(16, 9) / Fraction(*SIZE), (85, 48)
    path = make(tmp_path / f"a.{ending}", [quarters()] * 25, codec, rate=25, sample_aspect_ratio=aspect)
    check(path, QUARTERS.astype(int), tmp_path, tolerance=14, shown=shown)


def test_pixels_that_are_not_square_in_a_turned_picture(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4", [quarters()] * RATE, sample_aspect_ratio=Fraction(3, 2))
    turn(path, ORIENTATIONS["quarter turn right"][0])
    check(path, np.rot90(QUARTERS.astype(int), -1), tmp_path, shown=(48, 96))


@pytest.mark.parametrize(
    ("codec", "pixels", "ending"),
    [
        ("libx264rgb", "rgb24", "mp4"), ("libx264rgb", "bgr24", "mkv"), ("libx264rgb", "bgr0", "mp4"),
        ("ffv1", "bgr0", "mkv"), ("ffv1", "bgra", "mkv"), ("ffv1", "gbrp10le", "mkv"), ("ffv1", "gbrp12le", "mkv"),
        ("ffv1", "gbrp14le", "mkv"), ("ffv1", "gbrp16le", "mkv"), ("rawvideo", "bgr24", "avi"),
        ("qtrle", "rgb24", "mov"), ("png", "rgb48be", "mov"),
        ("libx264", "yuv444p", "mp4"), ("ffv1", "yuv422p10le", "mkv"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("color_range", [0, 1, 2])
def test_rgb_and_depths(tmp_path: Path, codec: str, pixels: str, ending: str, color_range: int) -> None:
    path = make(tmp_path / f"a.{ending}", [quarters()] * RATE, codec, pixels, color_range=color_range)
    check(path, QUARTERS.astype(int), tmp_path)


@pytest.mark.parametrize(
    ("size", "tag", "matrix"),
    [
        (SIZE, 1, 1), (SIZE, 5, 5), (SIZE, 6, 6), (SIZE, 7, 7), (SIZE, 9, 9), (SIZE, 2, 5),
        ((1280, 720), 2, 1), ((960, 720), 2, 1), ((1280, 536), 2, 1), ((720, 576), 2, 5), ((1280, 720), 6, 6),
    ],
)  # fmt: skip
@pytest.mark.parametrize("color_range", [1, 2])
def test_matrices(tmp_path: Path, size: tuple[int, int], tag: int, matrix: int, color_range: int) -> None:
    """`tag`: what the file says, 2 is nothing; `matrix`: what its numbers were made with."""
    frame = av.VideoFrame.from_ndarray(quarters(size), format="rgb24")
    planes = frame.reformat(format="yuv444p", dst_colorspace=matrix, dst_color_range=color_range).to_ndarray()
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, color_range
        for index in range(5):
            picture = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            picture.colorspace, picture.color_range = tag, color_range
            picture.pts, picture.time_base = index, Fraction(1, 5)
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    check(path, QUARTERS.astype(int), tmp_path, shown=size)


@pytest.mark.parametrize("transfer", [PQ, HLG])
@pytest.mark.parametrize(
    ("codec", "pixels"), [("libx265", "yuv420p10le"), ("ffv1", "yuv422p12le"), ("ffv1", "yuv420p10le")]
)
def test_hdr(tmp_path: Path, transfer: int, codec: str, pixels: str) -> None:
    """Tone mapped for network and overlay, which is tagged BT.709, and said once."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    colours = {"colorspace": 9, "color_primaries": 9, "color_trc": transfer, "color_range": 1}
    code = (quarters() // 2 + 60).astype(np.uint8)
    path = make(tmp_path / "a.mkv", [code] * RATE, codec, pixels, options=options, **colours)
    expected = 255 * sdr_colours(QUARTERS.reshape(-1, 3) // 2 / 255 + 60 / 255, transfer).reshape(2, 2, 3)
    check(path, expected, tmp_path, tolerance=12)
    assert [note for note in read_clip(path).warnings if "HDR" in note] == read_clip(path).warnings
    with av.open(str(tmp_path / "overlay.mp4")) as overlay:
        codec_context = overlay.streams.video[0].codec_context
        assert (codec_context.colorspace, codec_context.color_trc, codec_context.color_primaries) == (BT709,) * 3


def test_tone_curve() -> None:
    """Black stays black, white of 203 cd/m2 stays bright, more light is never darker, grey stays grey."""
    steps = np.repeat(np.linspace(0, 1, 50)[:, None], 3, axis=1)
    for transfer, white in ((PQ, 0.58), (HLG, 0.75)):
        curve = sdr_colours(steps, transfer)
        assert (
            np.allclose(curve[0], 0) and np.allclose(curve[-1], 1, atol=0.01) and (np.diff(curve[:, 0]) >= -1e-9).all()
        )
        assert np.ptp(curve, axis=1).max() < 0.01
        assert 0.7 < sdr_colours(np.full((1, 3), white), transfer)[0, 0] < 0.95


@pytest.mark.parametrize(
    ("codec", "options", "pixels"),
    [
        ("libx264", {"x264-params": "tff=1", "flags": "+ildct+ilme"}, "yuv420p"),
        ("libx264", {"x264-params": "bff=1"}, "yuv420p"),
        ("mpeg2video", {"flags": "+ildct+ilme", "top": "1"}, "yuv422p"),
    ],
)
def test_interlaced(tmp_path: Path, codec: str, options: dict[str, str], pixels: str) -> None:
    """A bar that moves from field to field is not combed."""
    pictures = []
    for index in range(24):
        picture = np.full((64, 128, 3), 40, np.uint8)
        for field in range(2):
            place = 8 + 2 * (2 * index + field)
            picture[field::2, place : place + 16] = 220
        pictures.append(picture)
    path = make(tmp_path / "a.mkv", pictures, codec, pixels, rate=24, options=options)
    clip = read_clip(path)
    rows = np.asarray(clip.frames[0]).astype(int)[8:-8].mean(2)
    assert np.abs(np.diff(rows, axis=0)).max() < 40  # combed: 180
    assert [note for note in clip.warnings if "interlaced" in note] == clip.warnings
    overlay = write_overlay_video(path, tmp_path / "overlay.mp4", empty_maps(path))
    with av.open(str(overlay)) as output:
        frames = [frame.to_ndarray(format="gray").astype(int) for frame in output.decode(video=0)]
    assert len(frames) == 24 and max(np.abs(np.diff(frame[8:-8], axis=0)).max() for frame in frames) < 60


def peaks(path: Path) -> list[float]:
    waveform, _ = load_audio(path)
    return [round(float(np.abs(waveform[k : k + 8000]).max()), 1) for k in range(0, len(waveform) - 100, 8000)]


SILENT, BEEPS = (np.zeros(96000, np.float32), "mono"), (tone(2), "mono")


@pytest.mark.parametrize(
    ("sounds", "expected"),
    [((SILENT, BEEPS), 2), ((BEEPS, SILENT), 1), ((SILENT, BEEPS, SILENT, SILENT), 2), ((SILENT, SILENT), 1)],
)
@pytest.mark.parametrize(("sound_codec", "ending"), [("aac", "mp4"), ("pcm_s16le", "mov"), ("aac", "mkv")])
def test_sound_tracks(tmp_path: Path, sounds: tuple, expected: int, sound_codec: str, ending: str) -> None:
    path = make(tmp_path / f"a.{ending}", [quarters()] * 20, sounds=sounds, sound_codec=sound_codec)
    clip = read_clip(path)
    heard = [float(np.abs(clip.waveform[k : k + 8000]).max()) for k in range(0, 32000, 8000)]
    beeps = [0.5, 0.0, 0.5, 0.0] if any(sound is BEEPS for sound in sounds) else [0.0] * 4
    assert heard == pytest.approx(beeps, abs=0.1)
    (note,) = clip.warnings
    assert f"{len(sounds)} sound tracks" in note and f"number {expected} is used" in note
    assert peaks(write_overlay_video(path, tmp_path / "overlay.mp4", empty_maps(path)))[:4] == pytest.approx(
        beeps, abs=0.1
    )
    assert np.abs(read_clip(path, audio_track=1).waveform).max() == pytest.approx(np.abs(sounds[0][0]).max(), abs=0.1)
    with pytest.raises(MediaError, match=rf"number of the sound track must be 1 to {len(sounds)}, got 9"):
        read_clip(path, audio_track=9)


@pytest.mark.parametrize("default", [None, 0, 1])
def test_picture_tracks(tmp_path: Path, default: int | None) -> None:
    """The flagged track, else the largest."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        streams = [output.add_stream("mpeg4", rate=RATE), output.add_stream("libx264", rate=RATE)]
        for index, (stream, size) in enumerate(zip(streams, ((32, 24), SIZE), strict=True)):
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            stream.disposition = av.stream.Disposition.default if index == default else av.stream.Disposition(0)
        for index in range(RATE):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(quarters((stream.width, stream.height)), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, RATE)
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    clip = read_clip(path)
    assert clip.frames[0].size == ((32, 24) if default == 0 else SIZE)
    assert "2 video tracks" in clip.warnings[0]
    assert read_clip(path, video_track=1).frames[0].size == (32, 24)
    assert read_clip(path, video_track=2).frames[0].size == SIZE


def numbered(count: int, first: int = 0) -> list[np.ndarray]:
    return [np.full((48, 64, 3), 20 + 3 * (first + index), np.uint8) for index in range(count)]


@pytest.mark.parametrize("ending", ["ts", "mpg"])
@pytest.mark.parametrize("later", [0.0, 20.0, 3600.0, 90000.0])
def test_joined_streams(tmp_path: Path, ending: str, later: float) -> None:
    """The clock of the second half starts again, or jumps; time goes on, sound and pictures in step."""
    codecs = {
        "codec": "libx264" if ending == "ts" else "mpeg2video",
        "sound_codec": "aac" if ending == "ts" else "mp2",
    }
    parts = []
    for index in range(2):
        path = tmp_path / f"part{index}.{ending}"
        make(path, numbered(50, 25 * index), rate=25, sounds=((tone(2), "mono"),), **codecs)
        if index and later:
            path = delayed(path, tmp_path / f"late.{ending}", later)
        parts.append(path.read_bytes())
    joined = tmp_path / f"joined.{ending}"
    joined.write_bytes(b"".join(parts))
    clip = read_clip(joined)
    shown = [round((np.asarray(frame).mean() - 20) / 3) for frame in clip.frames]
    assert len(shown) == 4 and np.abs(np.subtract(shown, [23, 48, 48, 73])).max() <= 3
    heard = [float(np.abs(clip.waveform[16000 * k + 1600 : 16000 * k + 2400]).max()) for k in range(4)]
    quiet = [float(np.abs(clip.waveform[16000 * k + 6000 : 16000 * k + 14000]).max()) for k in range(4)]
    assert min(heard) > 0.3 and max(quiet) < 0.1
    assert [note for note in clip.warnings if "clock" in note] == clip.warnings
    overlay = write_overlay_video(joined, tmp_path / "overlay.mp4", empty_maps(joined))
    assert probe_media(overlay).seconds == 4 and probe_media(overlay).num_frames == 100
    assert np.abs(np.subtract(peaks(overlay)[:8], [0.5, 0.0] * 4)).max() <= 0.15


def delayed(source: Path, target: Path, seconds: float) -> Path:
    """The same packets on a later clock."""
    with av.open(str(source)) as video, av.open(str(target), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in video.streams}
        for packet in video.demux():
            if packet.dts is not None:
                ticks = round(seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return target


def test_a_pause_of_the_sound_is_no_jump(tmp_path: Path) -> None:
    """Pictures go on while the sound is away for eight seconds."""
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        track = output.add_stream("mp2", rate=48000, layout="mono")
        sound = [*sound_frames(tone(1), "mono", 48000, 1152), *sound_frames(tone(1), "mono", 48000, 1152)]
        for index, frame in enumerate(sound):
            frame.pts = index * 1152 if index < len(sound) // 2 else 9 * 48000 + index * 1152
        for index in range(55):
            picture = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 5)
            output.mux(stream.encode(picture))
            while sound and sound[0].pts / 48000 <= index / 5:
                output.mux(track.encode(sound.pop(0)))
        output.mux(stream.encode(None))
    clip = read_clip(path)
    assert len(clip.frames) == 11 and not clip.warnings


@pytest.mark.parametrize(
    ("codec", "ending", "layout"),
    [
        ("wmav2", "wmv", "stereo"),
        ("wmav1", "wmv", "mono"), ("ac3", "mkv", "5.1(side)"), ("eac3", "mkv", "5.1(side)"),
        ("flac", "mkv", "7.1"), ("pcm_s16le", "avi", "stereo"), ("libopus", "webm", "stereo"), 
        ("adpcm_ms", "avi", "stereo"), ("mp2", "mpg", "stereo"), ("aac", "ts", "stereo"), ("alac", "mov", "stereo"),
        ("libmp3lame", "mp4", "stereo"), ("aac", "mp4", "5.1"),
    ],
)  # fmt: skip
def test_sounds_keep_time_and_channels(tmp_path: Path, codec: str, ending: str, layout: str) -> None:
    video = {"wmv": "wmv2", "webm": "libvpx", "mpg": "mpeg2video", "avi": "mpeg4"}.get(ending, "libx264")
    path = tmp_path / f"a.{ending}"
    make(path, [quarters()] * 75, video, rate=25, sounds=((tone(3), layout),), sound_codec=codec)
    overlay = write_overlay_video(path, tmp_path / "overlay.mp4", empty_maps(path))
    channels = av.AudioLayout(layout).nb_channels
    assert probe_media(overlay).audio_channels == channels == probe_media(path).audio_channels
    for source in (path, overlay):
        waveform = read_clip(source).waveform
        begins = [k * 16000 + int(np.argmax(np.abs(waveform[k * 16000 :]) > 0.2)) for k in (1, 2)]
        assert np.abs(np.subtract(begins, [16000, 32000])).max() < 16000 * 0.03, source.suffix


@pytest.mark.parametrize("fps", [1, 2])
def test_stills_are_repeated_where_the_map_changes(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "slides.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for time in (0, 150, 199):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    count = len(read_clip(path, fps=fps).frames)
    labels = [((k + 15 / 16) / fps, np.full((48, 64), 1 + k // 2 % 2, np.uint8)) for k in range(count)]
    colors = np.array([[0, 0, 0], [250, 0, 0], [0, 0, 250]], np.uint8)
    overlay = write_overlay_video(path, tmp_path / "overlay.mp4", iter(labels), colors, fps=fps, alpha=1.0)
    shown = {}
    with av.open(str(overlay)) as output:
        for frame in output.decode(video=0):
            shown[round(frame.time, 3)] = "red" if frame.to_ndarray(format="rgb24")[24, 32, 0] > 125 else "blue"
    times = sorted(shown)
    assert 2 < len(times) < 3 + count  # not one for every slot
    for k in range(count):
        current = max(time for time in times if time <= (k + 0.9) / fps)
        assert shown[current] == ("red", "blue")[k // 2 % 2], (k, shown)
    assert probe_media(overlay).duration == pytest.approx(probe_media(path).duration, abs=0.05)


@pytest.mark.parametrize("ending", ["webp", "png", "gif"])
def test_animations(tmp_path: Path, ending: str) -> None:
    images = [Image.fromarray(picture) for picture in numbered(20)]
    path = tmp_path / f"a.{ending}"
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=100, **({"lossless": True} if ending == "webp" else {})
    )
    clip = read_clip(path)
    assert [round((np.asarray(frame).mean() - 20) / 3) for frame in clip.frames] == [9, 19]
    assert read_clip(path.read_bytes()).frames == clip.frames
    write_overlay_video(path, tmp_path / "overlay.mp4", empty_maps(path))


@pytest.mark.parametrize(
    ("name", "codec", "size", "options"),
    [
        ("a.mxf", "mpeg2video", SIZE, {}),
        ("a.dv", "dvvideo", (720, 576), {}),
        ("a.mov", "prores_ks", SIZE, {}),
        ("a.3gp", "h263", (176, 144), {}),
        ("a.ogv", "libtheora", SIZE, {}),
        ("a.flv", "flv1", SIZE, {}),
    ],
)
def test_containers_of_cameras(tmp_path: Path, name: str, codec: str, size: tuple[int, int], options: dict) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    pixels = {"dvvideo": "yuv420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
    path = make(tmp_path / name, [quarters(size)] * 50, codec, pixels, rate=25, options=options)
    clip = read_clip(path)
    assert len(clip.frames) == 2
    assert np.abs(corners(clip.frames[0]) - QUARTERS.astype(int)).max() <= 20
    write_overlay_video(path, tmp_path / "overlay.mp4", empty_maps(path))


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        ("a.y4m", b"YUV4MPEG2 W64 H48 F25:1\nFRAME\n", "a bare YUV4MPEG stream is not supported"),
        ("a.h264", b"\0\0\0\1\x67\x42\0\x0a", "a bare H.264 or HEVC stream is not supported"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "a still picture is not supported"),
        ("a.m3u8", b"#EXTM3U\n", "a playlist is not supported"),
    ],
)
def test_kinds_that_are_not_read_are_named(tmp_path: Path, name: str, start: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(start + bytes(2000))
    with pytest.raises(MediaError, match=rf"^{name}: cannot be read as a video or a sound \({kind}\)\.$"):
        read_clip(path)


def test_encrypted(tmp_path: Path) -> None:
    """Made by the muxer of FFmpeg with the scheme that streaming services use."""
    path = tmp_path / "a.mp4"
    key = "76a6c65c5ea762046bd749a2e632ccbb"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key[::-1]}
    plain = make(tmp_path / "plain.mp4", [quarters()] * RATE)
    with av.open(str(plain)) as source, av.open(str(path), "w", options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    for read in (probe_media, read_clip, lambda path: write_overlay_video(path, tmp_path / "overlay.mp4", [])):
        with pytest.raises(MediaError, match=r"^a.mp4: is encrypted \(DRM\); such files cannot be read\.$"):
            read(path)
    assert not (tmp_path / "overlay.mp4").exists()
