"""Make the moving picture of README.md from the overlay of the bundled clip.

combo-hf demo --output combo-demo
python examples/picture.py combo-demo/demo_overlay.mp4 --output docs/images/demo.webp
"""

import sys
from pathlib import Path

import av

from combo_hf.cli import Parser, run_script
from combo_hf.files.atomic import replacing


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="file.webp")
    parser.add_argument("--fps", type=int, default=4, help="pictures a second, default 4")
    parser.add_argument("--width", type=int, default=400, help="pixels, default 400")
    parser.add_argument("--quality", type=int, default=40, help="of WebP, 1 to 100, default 40")
    arguments = parser.parse_args()
    pictures = []
    with av.open(str(arguments.video)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            if frame.time * arguments.fps >= len(pictures):
                height = round(arguments.width * frame.height / frame.width)
                pictures.append(frame.to_image(width=arguments.width, height=height))
    first, *rest = pictures
    options = {"duration": 1000 // arguments.fps, "loop": 0, "quality": arguments.quality, "method": 6}
    with replacing(arguments.output) as partial:
        first.save(partial, format="webp", save_all=True, append_images=rest, **options)
    print(f"{arguments.output}: {len(pictures)} pictures, {arguments.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(run_script(main))
