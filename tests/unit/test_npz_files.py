"""Cache files that are damaged, or made to harm: refused or made again, never unpickled, never unpacked in full."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import BARE

from combo_hf.files import npz as npz_files
from combo_hf.files.npz import read_npz
from combo_hf.proposals.cache import CachedProposals, read_masks, write_masks
from combo_hf.training import clips_in_memory as training_data
from combo_hf.training.clips_in_memory import load_examples


MASKS = np.arange(3 * 8 * 9).reshape(3, 8, 9) % 5 == 0


def packed(save: Any = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def stored(header: str, data: bytes = b"") -> bytes:
    """An .npz whose array has a header of one's choice."""
    text = header.encode() + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("packed.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return buffer.getvalue()


def good() -> bytes:
    return packed(np.savez_compressed, packed=np.packbits(MASKS), shape=np.array(MASKS.shape))


def changed(place: int, value: int) -> bytes:
    data = bytearray(good())
    data[place] = value
    return bytes(data)


LISTED = good().index(b"PK\1\2")  # where the zip lists its first file
DAMAGED = {
    "empty": b"",
    "text": b"text",
    "cut": good()[:-30],
    "flag": changed(LISTED + 8, 0x20),
    "method": changed(LISTED + 10, 99),
    "deflate": changed(30 + len("packed.npy") + 20, 0xFF),  # behind header, name and extra field
    "objects": packed(packed=np.array([print, None], dtype=object), shape=np.array(MASKS.shape)),
    "header": stored("{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000000,), }"),
    "no dict": stored("(" * 500),
    "code": stored("{'descr': __import__('os').system('x'), 'fortran_order': False, 'shape': (1,), }"),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"^a.npz is damaged or no .npz file \(.+\)\.$"):
        read_npz(path)
    assert read_masks(path) is None
    with pytest.raises(ValueError, match="no cache of prepared clips, or damaged"):
        load_examples(path)


def test_memory_that_does_not_suffice_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(good())

    def no_room(*_: Any, **__: Any) -> Any:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(npz_files.np, "load", no_room)
    for read in (read_npz, read_masks, load_examples):
        with pytest.raises(MemoryError, match="Unable to allocate"):
            read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
def test_a_file_too_large_for_this_machine_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(1 << 28, np.uint8))
    code = (
        f"{BARE}import resource\nfrom combo_hf.files.npz import read_npz\nfrom pathlib import Path\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27), -1))\n"
        "try:\n    read_npz(sys.argv[1])\nexcept MemoryError:\n    print('no memory')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=200)
    assert done.stdout == "no memory\n", done.stderr


@pytest.mark.parametrize("name", ["size", "compressed size"])
def test_sizes_that_lie(tmp_path: Path, name: str) -> None:
    """Of the list of the zip: 4 GB in a file of some hundred bytes."""
    data = bytearray(good())
    place = LISTED + {"compressed size": 20, "size": 24}[name]
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFF0)
    path = tmp_path / "a.npz"
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="cannot have 4294967280 bytes|damaged"):
        read_npz(path)


def test_outdated_clips_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "a.npz", []
    path.write_bytes(packed(settings=np.array(json.dumps({"version": 1})), frames=np.zeros(5)))

    def watched(*arguments: Any, **options: Any) -> dict[str, np.ndarray]:
        asked.append(options.get("names"))
        return read_npz(*arguments, **options)

    monkeypatch.setattr(training_data, "read_npz", watched)
    assert load_examples(path, {"version": 2}) is None
    assert asked == [["settings"]]
    assert read_npz(path, names=["settings"]).keys() == {"settings"}
    with pytest.raises(ValueError, match="damaged"):
        read_npz(path, names=["nothing"])


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(packed(np.savez_compressed, a=np.zeros(1 << 22, np.uint8)))
    assert path.stat().st_size < 1 << 14
    with pytest.raises(ValueError, match="at most 1000000 are read"):
        read_npz(path, 1_000_000)
    assert read_npz(path)["a"].shape == (1 << 22,)


@pytest.mark.parametrize(
    "arrays",
    [
        {"packed": np.packbits(MASKS)},
        {"packed": np.packbits(MASKS), "shape": np.array([100000, 100000, 100000])},  # unpackbits would fill it up
        {"packed": np.packbits(MASKS), "shape": np.array([-1, 8, 9])},
        {"packed": np.packbits(MASKS), "shape": np.array([3, 8])},
        {"packed": np.packbits(MASKS), "shape": np.array([3.0, 8.0, 9.0])},
        {"packed": np.packbits(MASKS), "shape": np.array("x")},
        {"packed": np.zeros(27), "shape": np.array(MASKS.shape)},
    ],
)
def test_impossible_masks(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(packed(**arrays))
    assert read_masks(path) is None


def test_an_entry_of_another_size_is_made_again(tmp_path: Path) -> None:
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    proposals = CachedProposals("superpixels", tmp_path)
    wanted = proposals([frame])[0]
    write_masks(proposals.path(frame), MASKS)
    again = proposals([frame])[0]
    np.testing.assert_array_equal(again, wanted)
    np.testing.assert_array_equal(read_masks(proposals.path(frame)), wanted)
    assert (proposals.hits, proposals.misses) == (0, 2)


@pytest.mark.parametrize(
    "change",
    [{"settings": np.array("{")}, {"num_frames": np.array([5])}, {"num_frames": np.array([-1, 3])},
     {"num_frames": np.array(["x"])}, {"label_frames": np.zeros((2, 2, 2))}, {"masks": np.array("x")},
     {"frames": np.zeros(2, np.complex64)}, {"video_ids": np.array(3)}],
)  # fmt: skip
def test_impossible_clips(tmp_path: Path, change: dict[str, np.ndarray]) -> None:
    arrays = {
        "settings": np.array(json.dumps({})), "video_ids": np.array(["a"]), "num_frames": np.array([2]),
        "frames": np.zeros((2, 3, 4, 4), np.uint8), "input_features": np.zeros((2, 1, 96, 64), np.float32),
        "masks": np.zeros((2, 4, 4), np.uint8), "label_frames": np.array([True, True]),
    }  # fmt: skip
    path = tmp_path / "a.npz"
    path.write_bytes(packed(**arrays))
    assert [example.video_id for example in load_examples(path, {})] == ["a"]
    path.write_bytes(packed(**{**arrays, **change}))
    with pytest.raises(ValueError, match="no cache of prepared clips, or damaged"):
        load_examples(path, {})
