"""Feeds damaged files to everything that reads foreign bytes, and counts what does not end as it should.

    python tests/programs/fuzz.py --seconds 120 [--kinds films sounds ...] [--seed 7] [--keep FOLDER]

Small good files are made, then changed: bytes flipped, cut, doubled, fields set to extremes. Every input goes to its
reader in a child process (a crash of a decoder must be seen, not end the program), which is watched for memory and
time. Good ends: a result, or one of the errors that the reader documents. Anything else is a finding: another
exception, a signal, memory that grows by more than 1.5 GB, more than 10 s of the processor.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fuzz_corpus as corpus
import numpy as np


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the package of this clone

INPUT_SECONDS = 60  # of the clock, then the child is killed
INPUT_CPU_SECONDS = 10
BATCH = 1000  # a child needs seconds to start


def read_film(data: bytes, folder: Path) -> None:
    """What predict does with a film, without the network."""
    from combo_hf.media_combo import iter_clips, probe_media
    from combo_hf.results.video import write_overlay_video

    path = folder / "film.bin"
    path.write_bytes(data)
    info = probe_media(path)
    if info.seconds > 100 or info.width * info.height > 1 << 22:  # legal, and only slow
        return
    times = []
    for clip in iter_clips(data, frames_per_clip=5):
        assert len(clip.waveform) == 16000 * len(clip.frames) and np.isfinite(clip.waveform).all()
        times += clip.times.tolist()
    maps = ((time, np.zeros((info.height, info.width), np.uint8)) for time in times)
    write_overlay_video(path, folder / "overlay.mp4", maps, np.zeros((3, 3), np.uint8))


def read_audio(data: bytes, folder: Path) -> None:
    """Sound by both ways: of films, and of rows."""
    from combo_hf.data.sound import read_sound
    from combo_hf.media_combo import load_audio

    read_by_all((load_audio, lambda content: read_sound(content, "a.wav")), data)


def read_by_all(readers: Sequence[Callable[[Any], Any]], source: Any) -> None:
    """Give the source to every reader, then raise the first `ValueError`."""
    errors = []
    for read in readers:
        try:
            read(source)
        except ValueError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_row(data: bytes, folder: Path, sound: bytes = b"") -> None:
    """A picture as frame, Maskige and mask of a row."""
    from combo_hf.data.rows import decode_row
    from combo_hf.files.pictures import open_image

    sound = sound or corpus.sounds()[0]
    entry = {"bytes": data, "path": None}
    row = {"video_id": "a", "frames": [entry], "masks": [entry], "label_frames": [True], "maskiges": [entry],
           "audio": {"bytes": sound}}  # fmt: skip
    errors = []
    for step in (
        lambda: open_image(data, "a.png"),
        lambda: decode_row(row, 71),
        lambda: decode_row({**row, "masks": [corpus.label_map()]}, 71),
    ):
        try:
            step()
        except ValueError as error:
            errors.append(error)
    if len(errors) == 3:
        raise errors[0]


def read_row_sound(data: bytes, folder: Path) -> None:
    """A sound of a row."""
    read_row(corpus.pictures()[0], folder, data)


def _file_reader(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    def reader(data: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(data)
        read(path)

    return reader


def _state_dict(path: Path) -> Any:
    from combo_hf.conversion.files import read_state_dict

    return read_state_dict(path)


def read_checkpoint(data: bytes, folder: Path) -> None:
    """Configuration and processor of a folder, as `from_pretrained` reads them."""
    import combo_hf

    try:
        config, processor = json.loads(data)
    except ValueError as error:  # the two files, each damaged
        config, processor = data[: len(data) // 2], data[len(data) // 2 :]
        del error
    for name, content in (("config.json", config), ("processor_config.json", processor)):
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(text)
    frames = [np.zeros((24, 32, 3), np.uint8)]
    errors = []
    for step in (
        lambda: combo_hf.ComboConfig.from_pretrained(folder),
        lambda: combo_hf.ComboProcessor.from_pretrained(folder)(frames, np.zeros(16000, np.float32), 16000),
    ):
        try:
            step()
        except (ValueError, TypeError, OSError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _network_reader(name: str) -> Callable[[bytes, Path], None]:
    """A checkpoint of which one file is foreign: loaded, and run on a clip."""

    def reader(data: bytes, folder: Path) -> None:
        import combo_hf

        for other, content in {**corpus.network(), name: data}.items():
            (folder / other).write_bytes(content)
        clip = {
            "frames": [np.zeros((24, 32, 3), np.uint8)],
            "audio": np.zeros(16000, np.float32),
            "sampling_rate": 16000,
        }
        combo_hf.load_pipeline(folder, device="cpu")(clip)

    return reader


def read_table(data: bytes, folder: Path) -> None:
    """csv of every subset; names must stay in their folder."""
    from combo_hf.data.avsbench_layout import scan_entries
    from combo_hf.data.subsets import RULES

    for subset, rule in RULES.items():
        (folder / rule.meta).write_bytes(data)
        for entry in scan_entries(folder, subset)[0]:
            for template in (rule.frame, rule.mask, rule.wav, *rule.maskiges):
                for path in entry.paths(folder, rule, template):
                    assert Path(os.path.normpath(path)).is_relative_to(folder), f"{path} leaves the folder"


def read_parquet(data: bytes, folder: Path) -> None:
    """A built data set: rewritten with other Maskiges, and its rows read."""
    import pyarrow
    import pyarrow.parquet

    from combo_hf.data.rows import decode_row
    from combo_hf.proposals.parquet import count_rows

    path = folder / "a.parquet"
    path.write_bytes(data)
    count_rows(path)
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError):  # of the library, under datasets
        return
    for row in rows:
        decode_row(row, 71)


def read_recipe(path: Path) -> None:
    """A recipe of the command line, and what a model card takes from it."""
    from combo_hf.publishing.card import _read
    from combo_hf.training.arguments import TrainingRecipe

    read_by_all((TrainingRecipe.from_yaml, _read), path)


def _mask_cache(path: Path) -> Any:
    from combo_hf.proposals.cache import read_masks

    return read_masks(path)


def _clip_cache(path: Path) -> Any:
    from combo_hf.training.clips_in_memory import load_examples

    return load_examples(path)


KINDS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes, Path], None], tuple[type[Exception], ...]]] = {
    "films": (corpus.films, read_film, (ValueError,)),
    "sounds": (corpus.sounds, read_audio, (ValueError,)),
    "pictures": (corpus.pictures, read_row, (ValueError,)),
    "row-sounds": (corpus.sounds, read_row_sound, (ValueError,)),
    "pth": (corpus.weights, _file_reader("a.pth", _state_dict), (ValueError,)),
    "safetensors": (corpus.safetensors, _file_reader("a.safetensors", _state_dict), (ValueError,)),
    "pkl": (corpus.pickles, _file_reader("a.pkl", _state_dict), (ValueError,)),
    "checkpoints": (corpus.checkpoints, read_checkpoint, (ValueError, TypeError, OSError)),
    "network-weights": (corpus.network_weights, _network_reader("model.safetensors"), (ValueError,)),
    "network-sizes": (corpus.network_config, _network_reader("config.json"), (ValueError,)),
    "csv": (corpus.tables, read_table, ()),
    "parquet": (corpus.parquets, read_parquet, (ValueError,)),
    "recipes": (corpus.recipes, _file_reader("recipe.yaml", read_recipe), (ValueError,)),
    "mask-cache": (corpus.mask_caches, _file_reader("a.npz", _mask_cache), ()),
    "clip-cache": (corpus.clip_caches, _file_reader("a.npz", _clip_cache), (ValueError,)),
}


CHANGES = {
    "checkpoints": corpus.mutate_json,
    "network-weights": corpus.mutate_tensors,
    "network-sizes": corpus.mutate_sizes,
}


def batch_of(kind: str) -> int:
    """Inputs for one child: networks are files of 6 MB, and built for each."""
    return BATCH // 20 if kind.startswith("network") else BATCH


def make_inputs(kind: str, seed: int, count: int) -> list[bytes]:
    """The same inputs for the same seed."""
    rng, good = random.Random(f"{kind} {seed}"), KINDS[kind][0]()
    change = CHANGES.get(kind, corpus.mutate)
    return [change(rng.choice(good), good, rng) for _ in range(count)]


def child(kind: str, source: Path, first: int) -> None:
    """Read the inputs of a zip file from number `first` on; say on stdout which one, and what was wrong with it."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    _, read, good_errors = KINDS[kind]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with zipfile.ZipFile(source) as archive:
        inputs = [archive.read(name) for name in sorted(archive.namelist())]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders chat
    os.dup2(1, 2)
    with tempfile.TemporaryDirectory() as folder:  # imports are not the fault of the first input
        _one(read, KINDS[kind][0]()[0], Path(folder), good_errors)
    for number in range(first, len(inputs)):
        out.write(f"try {number}\n")
        out.flush()
        with tempfile.TemporaryDirectory() as folder:
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.process_time()
            verdict = _one(read, inputs[number], Path(folder), good_errors)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
            if verdict in ("read", "refused") and grown > 1_500_000:
                verdict = f"memory grew by {grown >> 10} MiB"
            if verdict in ("read", "refused") and time.process_time() - began > INPUT_CPU_SECONDS:
                verdict = f"took {time.process_time() - began:.0f} s"
            if "PWNED" in os.listdir(".") or "PWNED" in os.listdir(folder):
                verdict = "code of the file was run"
        out.write(f"end {json.dumps(verdict)}\n")
        out.flush()


def _one(read: Callable[[bytes, Path], None], data: bytes, folder: Path, good: tuple[type[Exception], ...]) -> str:
    try:
        read(data, folder)
    except good as error:
        return "refused" if str(error).strip() else f"{type(error).__name__} without a message"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in place if "combo_hf" in frame.filename] or place
        return f"{type(error).__name__}: {str(error)[:120]} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return "read"


def run_batch(kind: str, inputs: list[bytes], tally: collections.Counter, findings: list[tuple[str, bytes]]) -> None:
    """Give the inputs to a child, and to another one from where the first died."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "inputs.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for number, data in enumerate(inputs):
                archive.writestr(f"{number:06d}", data)
        first = 0
        while first < len(inputs):
            command = [sys.executable, __file__, "--child", kind, str(source), str(first)]
            log = Path(folder) / "log.txt"
            limit = 5 * INPUT_SECONDS  # to start
            with (
                log.open("wb") as out,
                subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, cwd=folder) as process,
            ):
                size, since = -1, time.monotonic()
                while process.poll() is None:
                    time.sleep(0.05)
                    if log.stat().st_size != size:
                        size, since = log.stat().st_size, time.monotonic()
                    if time.monotonic() - since > (limit if size == 0 else INPUT_SECONDS):
                        process.kill()
            first = _judge(log.read_text().splitlines(), process.returncode, first, inputs, tally, findings)


def _judge(lines: list[str], code: int, first: int, inputs: list[bytes], tally: Any, findings: Any) -> int:
    """Count what a child said; returns the number of the next input."""
    number, waiting = first, False
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "try":
            number, waiting = int(rest), True
        elif word == "end":
            waiting, verdict = False, json.loads(rest)
            tally[verdict if verdict in ("read", "refused") else "finding"] += 1
            if verdict not in ("read", "refused"):
                findings.append((verdict, inputs[number]))
    if waiting:
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        findings.append((f"{how} (9: killed after {INPUT_SECONDS} s)" if code == -9 else how, inputs[number]))
        tally["crash"] += 1
        return number + 1
    if not lines:
        raise RuntimeError(f"the child did not start, exit {code}")
    return number + 1


def main(argv: list[str] | None = None) -> int:
    """Fuzz until the time is over; print inputs, findings; exit code 1 if there are any."""
    if argv is None and sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="for all kinds together")
    parser.add_argument(
        "--inputs", type=int, help="per kind, in place of a time; of networks at most 50 in each thousand"
    )
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were findings")
    arguments = parser.parse_args(argv)
    tallies: dict[str, collections.Counter] = {kind: collections.Counter() for kind in arguments.kinds}
    findings: list[tuple[str, bytes]] = []
    began, turn = time.monotonic(), 0
    limit = arguments.inputs or math.inf
    while turn == 0 or (turn * BATCH < limit if arguments.inputs else time.monotonic() - began < arguments.seconds):
        for kind in arguments.kinds:
            batch = min(batch_of(kind), limit - turn * batch_of(kind))
            if batch <= 0 or (turn and not arguments.inputs and time.monotonic() - began > arguments.seconds):
                continue
            before = len(findings)
            run_batch(kind, make_inputs(kind, arguments.seed * 100_000 + turn, batch), tallies[kind], findings)
            _report(kind, findings[before:], arguments.keep)
            print(f"{kind}: {dict(tallies[kind])} so far", file=sys.stderr, flush=True)
        turn += 1
    for kind, tally in tallies.items():
        print(f"{kind:12} {sum(tally.values()):6} inputs: {dict(tally)}")
    total = sum(sum(tally.values()) for tally in tallies.values())
    crashes = sum(tally["crash"] for tally in tallies.values())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"all {total} inputs in {used.ru_utime + used.ru_stime:.0f} CPU seconds ({time.monotonic() - began:.0f} s of "
        f"the clock), {len(findings)} findings, of them {crashes} crashes"
    )
    return 1 if findings else 0


def _report(kind: str, findings: list[tuple[str, bytes]], keep: Path | None) -> None:
    for verdict, data in findings:
        print(f"{kind}: {verdict} ({len(data)} bytes)", flush=True)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{kind}-{zlib.crc32(data):08x}.bin").write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
