"""Weights of strangers: numbers come out, code does not run, memory is not taken."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from combo_hf.conversion.files import ArrayUnpickler, check_pickle, load_arrays, read_state_dict, unpack


ARRAYS = {
    "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
    "big-endian": np.arange(3, dtype=">i4"),
    "transposed": np.arange(6, dtype=np.float16).reshape(2, 3).T,
    "axes": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 0, 2),
    "empty": np.zeros((0, 3), np.int64),
    "number": np.float64(0.5),
    "no axis": np.zeros((), np.uint8),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_what_they_were(name: str, protocol: int) -> None:
    for data in (pickle.dumps([ARRAYS[name]], protocol), pickle.dumps([ARRAYS[name]], protocol, fix_imports=False)):
        array = unpack(load_arrays(data)[0])
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
        old = data.replace(b"numpy._core", b"numpy.core")  # numpy 1; framed protocols would need another length
        if protocol < 4:
            np.testing.assert_array_equal(unpack(load_arrays(old)[0]), ARRAYS[name])


def test_bytes_of_python_2() -> None:
    text = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\n"
    data = text + b"I0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb."
    assert unpack(load_arrays(data)).tolist() == [1.0, -2.0]


class Made:
    """Pickled as a call, and a state for its result."""

    def __init__(self, call: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.parts = (call, arguments) if state is None else (call, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def array(shape: Any, kind: Any, data: Any) -> Made:
    call, arguments, _ = np.zeros(1).__reduce__()
    return Made(call, arguments, (1, shape, kind, False, data))


def record(code: str, *state: Any) -> Made:
    return Made(np.dtype, (code, False, True), (3, *state))


OUTSIDE = ("|", None, ("a",), {"a": (np.dtype("f8"), 1 << 30)}, 8, 8, 0)  # numpy reads there, and dies
FLOAT = np.dtype("f4")
REFUSED = {
    "field outside": array((2,), record("V8", *OUTSIDE), b"x" * 16),
    "number outside": Made(np.float64(0).__reduce__()[0], (record("V8", *OUTSIDE), b"x" * 8)),
    "objects": array((1,), np.dtype("O"), [0]),
    "states of numbers": array((2,), record("f4", *OUTSIDE), b"x" * 16),
    "text": array((1,), np.dtype("U4"), b"x" * 16),
    "shape beyond": array((1 << 40,), FLOAT, b"x" * 8),
    "shape below": array((-2,), FLOAT, b"x" * 8),
    "shape of numbers": array((2.0,), FLOAT, b"x" * 8),
    "no shape": array(3, FLOAT, b"x" * 8),
    "no type": array((2,), "f4", b"x" * 8),
    "list": array((2,), FLOAT, [0, 1]),
    "code": Made(eval, ("1",)),
    "file": Made(np.load, ("x",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_are_none(tmp_path: Path, name: str) -> None:
    content = {"a": REFUSED[name]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="^a.pkl is truncated or not a pickle of arrays"):
        read_state_dict(tmp_path / "a.pkl")
    for legacy in (False, True):
        torch.save({"model": {}, "x": content}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ValueError, match=r"^a.pth (is truncated or not a PyTorch|holds a )"):
            read_state_dict(tmp_path / "a.pth")


def test_an_array_without_a_state_is_no_tensor(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": Made(*np.zeros(1).__reduce__()[:2])}, 2))
    with pytest.raises(ValueError, match="'a' is a NoneType, wanted a tensor"):
        read_state_dict(tmp_path / "a.pkl")


def test_no_memory_for_a_memo(tmp_path: Path) -> None:
    bomb = b"}r" + struct.pack("<I", 1 << 27) + b"."  # pickle's own list of 2 GB for one entry
    with pytest.raises(pickle.UnpicklingError, match="an entry 134217728 of the memo"):
        check_pickle(io.BytesIO(bomb), len(bomb))
    (tmp_path / "a.pkl").write_bytes(bomb)
    with pytest.raises(ValueError, match="a.pkl"):
        read_state_dict(tmp_path / "a.pkl")
    huge = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 33) + b"x."
    with pytest.raises(ValueError, match="expected 8589934592 bytes"):
        check_pickle(io.BytesIO(huge), len(huge))
    good = pickle.dumps(list(range(1000)) + [f"{number}" for number in range(1000)])
    check_pickle(io.BytesIO(good), len(good))


def test_an_encoder_is_not_chosen_by_the_file() -> None:
    with pytest.raises(pickle.UnpicklingError, match="encoding"):
        ArrayUnpickler(b"c_codecs\nencode\n(Vx\nVzlib_codec\ntR.").load()


TEXT = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\x00"  # a megabyte in the memo, at place 0
ENCODE, ORDERED = b"c_codecs\nencode\nq\x01", b"ccollections\nOrderedDict\nq\x01"
PAIRS = b"](" + b"".join(b"K%cK\x01\x86" % number for number in range(256)) * 50 + b"eq\x00"
REUSED = {
    "text": b"\x80\x02" + TEXT + ENCODE + b"](" + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 500 + b"e.",
    "arguments": b"\x80\x02"
    + TEXT
    + ENCODE
    + b"h\x00X\x06\x00\x00\x00latin1\x86q\x02("
    + b"h\x01h\x02R" * 500
    + b"l.",
    "pairs": b"\x80\x02" + PAIRS + ORDERED + b"](" + b"h\x01h\x00\x85R" * 2000 + b"e.",
}


@pytest.mark.parametrize("name", REUSED)
def test_a_megabyte_does_not_ask_for_gigabytes(tmp_path: Path, name: str) -> None:
    """Every use of the same text, bytes or container may make a copy of it."""
    (tmp_path / "a.pkl").write_bytes(REUSED[name])
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", REUSED[name])
        archive.writestr("a/version", "3")
    (tmp_path / "b.pth").write_bytes(REUSED[name] * 5)
    for file in ("a.pkl", "a.pth", "b.pth"):
        tracemalloc.start()
        with pytest.raises(ValueError, match=f"^{file} is truncated or not"):
            read_state_dict(tmp_path / file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60 * (tmp_path / file).stat().st_size


EMPTY = {  # each a step of one to four bytes, for an object of 50 to 250
    "ordered dicts": b"ccollections\nOrderedDict\nq\x01](" + b"h\x01)R" * (1 << 18),
    "dicts": b"](" + b"}" * (1 << 18),
    "lists": b"](" + b"]" * (1 << 18),
    "tuples": b"](" + b"N\x85" * (1 << 18),
    "marks": b"](" + b"(" * (1 << 18) + b"l" * (1 << 18),
    "places in the memo": b"](" + b"\x94" * (1 << 18),
    "storages": b"](" + b"NQ" * (1 << 18),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_megabyte_of_empty_containers(tmp_path: Path, name: str) -> None:
    bomb = b"\x80\x04" + EMPTY[name] + b"e."
    (tmp_path / "a.pkl").write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", bomb)
        archive.writestr("a/version", "3")
    (tmp_path / "b.pth").write_bytes(bomb)
    for file in ("a.pkl", "a.pth", "b.pth"):
        with pytest.raises(ValueError, match=f"^{file} is truncated or not .*more containers and calls"):
            read_state_dict(tmp_path / file)


DEEP, DEEPER = (b"}N" + b"\x85" * depth + b"K\x01s" for depth in (40_000, 60_000))
NUMBERS = (
    b"}(" + b"".join(b"\x8a\x0b" + (number * (2**61 - 1)).to_bytes(11, "little") + b"N" for number in range(9)) + b"u"
)
STRANGE = {
    "deep key": (DEEP, "the entry of a tuple is a int, wanted a tensor"),
    "deeper key": (DEEPER, "more containers and calls"),
    "keys of one place": (NUMBERS, "a whole number of more than 8 bytes"),
    "long key": (b"}\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"Ns", "a whole number of more than 8 bytes"),
    "terminal": (b"}X\x04\x00\x00\x00\x1b[2JNs", r"'\\x1b\[2J' is a NoneType"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_names_that_no_state_dict_has(tmp_path: Path, name: str) -> None:
    """Deep ones end Python or `repr`, others cost the square of their number, some command a terminal."""
    content, message = STRANGE[name]
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + content + b".")
    with pytest.raises(ValueError, match=message) as caught:
        read_state_dict(tmp_path / "a.pkl")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("arguments", [(10**9,), ("x" * 9, "punycode"), ([0] * 9,)])
def test_bytes_are_not_made_of_arguments(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        load_arrays(pickle.dumps([Made(bytes, arguments)], 2))
    assert load_arrays(pickle.dumps([b""], 2)) == [b""]


def test_many_small_tensors_are_read(tmp_path: Path) -> None:
    """As many as no network has, of one number each: the most containers and calls for their bytes."""
    tensors = {f"{number}": torch.tensor([float(number)]) for number in range(5000)}
    torch.save(tensors, tmp_path / "a.pth")
    torch.save(tensors, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({name: value.numpy() for name, value in tensors.items()}, 2))
    for file in ("a.pth", "b.pth", "a.pkl"):
        found = read_state_dict(tmp_path / file)
        assert len(found) == len(tensors) and found["4999"].item() == 4999


def test_the_same_numbers_for_many_arrays(tmp_path: Path) -> None:
    """Their text is in a tuple that is the state of one array after the other."""
    call, arguments, _ = np.zeros(1).__reduce__()
    state = (1, (1 << 20,), np.dtype("u1"), False, "x" * (1 << 20))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({f"{n}": Made(call, arguments, state) for n in range(300)}, 2))
    with pytest.raises(ValueError, match="a.pkl is truncated or not"):
        read_state_dict(tmp_path / "a.pkl")


def test_a_compressed_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ValueError, match="b.pth is truncated or not .*compressed"):
        read_state_dict(tmp_path / "b.pth")


def legacy(path: Path, content: Any, filled: bool) -> None:
    """A PyTorch file of the old kind; where it is not `filled`, its storages are named and not there."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    buffer.seek(0)
    for _ in range(4):
        check_pickle(buffer, len(buffer.getvalue()))
    path.write_bytes(buffer.getvalue() if filled else buffer.getvalue()[: buffer.tell()] + pickle.dumps([], 2))


def grown(numbers: int, size: tuple[int, ...]) -> Made:
    """A tensor that asks for more numbers than its storage has, by the call that makes it."""
    storage = torch.zeros(numbers)._typed_storage()
    return Made(torch._utils._rebuild_tensor_v2, (storage, 0, size, (1,), False, None))


def set_later(numbers: int, size: tuple[int, ...]) -> Made:
    """The same by a state, which no check of the call sees."""
    storage = torch.zeros(numbers)._typed_storage()
    arguments = (storage, 0, (numbers,), (1,), False, None)
    return Made(torch._utils._rebuild_tensor_v2, arguments, (storage, 0, size, (1,)))


@pytest.mark.parametrize("make", [grown, set_later])
@pytest.mark.parametrize("kind", ["zip", "old", "old, not filled"])
def test_no_memory_that_was_not_read(tmp_path: Path, make: Any, kind: str) -> None:
    content = {"a": make(4, (30720,)), "padding": torch.zeros(100_000)}
    if kind == "zip":
        torch.save(content, tmp_path / "a.pth")
    else:
        legacy(tmp_path / "a.pth", content, kind == "old")
    with pytest.raises(ValueError, match="a.pth"):
        read_state_dict(tmp_path / "a.pth")


def test_what_a_file_names_and_does_not_hold_is_zero_or_refused(tmp_path: Path) -> None:
    legacy(tmp_path / "a.pth", {"a": torch.ones(3)}, filled=False)
    assert read_state_dict(tmp_path / "a.pth")["a"].tolist() == [0, 0, 0]
    legacy(tmp_path / "b.pth", {"a": torch.ones(30_000)}, filled=False)
    with pytest.raises(ValueError, match="b.pth is truncated or not"):
        read_state_dict(tmp_path / "b.pth")


UNUSUAL = {
    "meta": lambda: torch.zeros(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "small floats": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "wide": lambda: np.zeros(3, np.longdouble),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tensors_are_refused_in_words(tmp_path: Path, name: str) -> None:
    value = UNUSUAL[name]()
    with pytest.raises(ValueError, match="is a tensor of an unusual kind|is a ndarray, wanted a tensor"):
        read_state_dict({"a": value})
    torch.save({"a": value}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth"):
        read_state_dict(tmp_path / "a.pth")


def test_a_weight_file_with_a_lying_zip(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, content[:100] if entry.filename.endswith("data/0") else content)
    with pytest.raises(ValueError, match="b.pth is truncated or not a PyTorch weight file"):
        read_state_dict(tmp_path / "b.pth")
