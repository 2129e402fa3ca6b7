"""Foreign weight files, read without running what is in them.

Three kinds occur: PyTorch files (detectron2 checkpoints, VGGish, PVTv2), ImageNet pickles of detectron2 (numpy
arrays), and safetensors. PyTorch files go through `torch.load(weights_only=True)`, pickles through an unpickler that
knows arrays of numbers and nothing else. Whatever a file says: memory that was not read from it is not returned,
memory out of proportion to its size is not taken, and the only exception is `ValueError`.

Pickled numpy arrays are not rebuilt by numpy: a hand-made state of a `dtype` makes it read outside of the array (numpy
2.4: a crash). Its classes are replaced by others of the same names, which check what they get.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from combo_hf.files.wording import first_line


ENCODING = "latin1"  # of the bytes of Python 2
NUMBERS = "fiub"  # kinds of dtypes
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
SPARE_BYTES = 1 << 20  # that a small pickle may ask for beyond twice its own size
SPARE_OBJECTS = 100_000  # that a small file may ask for beyond one in 16 bytes; some have 250 bytes each
MAX_TUPLES = 50_000  # some have four for each tensor; Python crashes over a key of tuples nested a few 100,000 deep
LONG = ("LONG", "LONG1", "LONG4", "INT")
LARGEST = 1 << 63  # larger whole numbers are of use only as keys that all fall into one place of a dict
TORCH_MARK = 0x1950A86A20F9469CFC6C  # but this, with which an old PyTorch file begins
LEGACY_PICKLES = 5  # in a PyTorch file that is no zip archive: mark, version, system, content, names of the storages
CODES = {code.code: code for code in pickletools.opcodes}
TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
CONTAINERS = (
    "LIST",
    "DICT",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "EMPTY_LIST",
    "EMPTY_DICT",
    "EMPTY_SET",
    "FROZENSET",
)
CALLS = ("REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ")
STORES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")
# Steps that may take a hundred times as much memory as they have bytes.
MAKERS = (*CONTAINERS, *CALLS, "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "PERSID", "BINPERSID")


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by name from a file or from a dict, with or without the `{"model": ...}` of detectron2.

    Args:
        source: a `.pth`, `.pt`, `.bin`, `.safetensors` or `.pkl` file, or the dict itself (tensors or numpy arrays).

    Raises:
        ValueError: no such file, truncated, not a weight file, or a dict with something else than tensors in it.
        TypeError: `source` is neither a path nor a dict.
    """
    if isinstance(source, Mapping):
        return _tensors(source, "the given state dict")
    if not isinstance(source, (str, Path)):
        raise TypeError(f"wanted a path or a state dict, got {type(source).__name__}.")
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    readers: dict[str, tuple[Callable[[Path], Any], str]] = {
        ".safetensors": (_read_safetensors, "a safetensors file"),
        ".pkl": (lambda path: load_arrays(path.read_bytes()), "a pickle of arrays"),
    }
    read, kind = readers.get(path.suffix.lower(), (_read_torch, "a PyTorch weight file"))
    try:
        content = read(path)
    except Exception as error:  # any exception may come out of a damaged file
        # torch's text advises to load the file unsafely
        if found := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path.name} holds a {found.group(1)}, which is no tensor, could run code and is not loaded. "
                "If you trust the file, save its state dict alone with torch.save."
            ) from error
        why = "" if "weights_only" in str(error) else f" ({first_line(error)})"
        raise ValueError(f"{path.name} is truncated or not {kind}{why}.") from error
    return _tensors(content, path.name)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_torch(path: Path) -> Any:
    """Tensors, plain containers and, beside the model (a best score, say), numpy numbers and arrays."""
    size = path.stat().st_size
    is_zip = _check_torch(path)
    storages: list[tuple[torch.UntypedStorage, int]] = []

    def keep(storage: Any, location: str) -> Any:
        storages.append((storage, storage.nbytes()))
        if sum(count for _, count in storages) > size:
            raise pickle.UnpicklingError("more numbers than the file holds")
        if not is_zip:
            storage.fill_(0)  # whoever made the file decides whether it is filled afterwards
        return storage

    known: list[Any] = [(replacement, name) for name, replacement in NumpyNames(size).numpy().items()]
    with torch.serialization.safe_globals(known), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about pickle protocols; what fails is told
        # mmap works for PyTorch's zip format (since 1.6) only; VGGish's and PVTv2's files are older
        content = torch.load(path, map_location=keep, weights_only=True, mmap=is_zip)
    if any(storage.nbytes() != count for storage, count in storages):
        raise pickle.UnpicklingError("a tensor larger than its numbers")  # torch let the storage grow
    return content


def _check_torch(path: Path) -> bool:
    """Look through the pickles of a PyTorch file; returns whether it is a zip archive.

    Raises:
        Exception: any, if the file is damaged or asks for memory that its bytes do not pay for.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if is_zip:
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if entry.compress_type != zipfile.ZIP_STORED:
                        raise ValueError("a compressed archive")  # torch writes none, and a little may unpack to much
                    if entry.filename.endswith("/data.pkl"):
                        check_pickle(io.BytesIO(archive.read(entry)), size)
        else:
            for _ in range(LEGACY_PICKLES):
                check_pickle(file, size)
    return is_zip


def _tensors(content: Any, name: str) -> dict[str, torch.Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{name} holds no state dict: wanted names -> tensors, got {type(content).__name__}.")
    tensors = {}
    for key, value in content.items():
        value = unpack(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.dtype.itemsize <= 8:
            value = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))  # a scalar stays one
        if not isinstance(key, str) or not torch.is_tensor(value):
            shown = ascii(key[:80]) if isinstance(key, str) else f"the entry of a {type(key).__name__}"  # of any depth
            raise ValueError(f"{name} is not a state dict: {shown} is a {type(value).__name__}, wanted a tensor.")
        if not _is_plain(value):
            raise ValueError(f"{name}: {key[:80]!a} is a tensor of an unusual kind; wanted plain numbers in memory.")
        tensors[key] = value.resolve_neg()
    return tensors


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense, in memory, and of ordinary numbers."""
    in_memory = tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type != "meta"
    return in_memory and tensor.dtype in DTYPES


class PickledDtype:
    """What a pickle gets for `numpy.dtype`: a type of numbers or booleans, and its byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(code, str) or len(code) > 3 or np.dtype(code).kind not in NUMBERS:
            raise pickle.UnpicklingError(f"refused an array of {str(code)[:20]!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *parts = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise pickle.UnpicklingError("refused an array of records")
        self.dtype = self.dtype.newbyteorder(order)


class PickledArray:
    """What a pickle gets for `numpy.ndarray`. `value` is the array, `None` until it is known."""

    def __init__(self, names: NumpyNames) -> None:
        self.names = names
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if type(kind) is not PickledDtype or any(type(side) is not int or side < 0 for side in shape):
            raise pickle.UnpicklingError("an array without type or shape")
        self.names.take(data)
        data = data.encode(ENCODING) if isinstance(data, str) else data
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError("an array whose shape does not fit its numbers")
        self.value = np.frombuffer(bytes(data), kind.dtype).reshape(shape, order="F" if fortran else "C")


class NumpyNames:
    """The functions and classes that a pickle of arrays may name, for one file.

    Every copy of text or bytes is counted: a pickle may name the same megabyte a thousand times.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.left = 2 * size + SPARE_BYTES

    def take(self, data: Any) -> None:
        """Count bytes or text that are copied.

        Raises:
            pickle.UnpicklingError: more than the file pays for.
        """
        self.left -= len(data)
        if self.left < 0:
            raise pickle.UnpicklingError("more numbers than the file holds")

    def numpy(self) -> dict[str, Any]:
        """Replacements by the names of numpy 2 and 1."""
        names: dict[str, Any] = {"numpy.dtype": PickledDtype, "numpy.ndarray": PickledArray}
        for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
            names |= {f"{module}._reconstruct": self._reconstruct, f"{module}.scalar": self._scalar}
        return names

    def all(self) -> dict[str, Any]:
        """Those and what else a pickle of arrays in plain containers needs."""
        return self.numpy() | {
            "numpy._core.numeric._frombuffer": self._frombuffer,
            "numpy.core.numeric._frombuffer": self._frombuffer,
            "collections.OrderedDict": self._ordered_dict,
            "_codecs.encode": self._encode,
            "__builtin__.bytes": _no_bytes,
            "builtins.bytes": _no_bytes,
        }

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> PickledArray:
        if kind is not PickledArray:
            raise pickle.UnpicklingError("refused a subclass of arrays")
        return PickledArray(self)

    def _scalar(self, kind: Any, data: Any) -> PickledArray:
        array = PickledArray(self)
        array.__setstate__((1, (), kind, False, data))
        return array

    def _frombuffer(self, data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
        """What numpy writes from pickle protocol 5 on, the default of Python 3.14."""
        array = PickledArray(self)
        array.__setstate__((1, shape, kind, order == "F", data))
        if order == "K" and axes is not None and array.value is not None:
            array.value = array.value.transpose(axes)
        return array

    def _ordered_dict(self, items: Any = ()) -> dict[Any, Any]:
        self.take(items)
        return dict(items)

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != ENCODING:
            raise pickle.UnpicklingError(f"refused the encoding {encoding!r}")
        self.take(text)
        return text.encode(ENCODING)


def _no_bytes() -> bytes:
    """As Python writes empty ones for Python 2; with arguments it would be a way to any memory, and to slow codecs."""
    return b""


class ArrayUnpickler(pickle.Unpickler):
    """Builds arrays ([`PickledArray`]) and plain containers; everything else is refused before it can run."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding=ENCODING)
        self.known = NumpyNames(len(data)).all()

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.known:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return self.known[f"{module}.{name}"]


def load_arrays(data: bytes) -> Any:
    """The content of a pickle of arrays and plain containers.

    Raises:
        Exception: any, if the pickle is damaged or holds something else.
    """
    check_pickle(io.BytesIO(data), len(data))
    return ArrayUnpickler(data).load()


def check_pickle(file: IO[bytes], size: int) -> None:
    """Refuse a pickle that would take memory which its bytes do not pay for; reads to its end mark.

    Args:
        size: of the whole file, which has the numbers of tensors beside the pickle.

    Raises:
        pickle.UnpicklingError: a place in the memo far beyond the number of its entries; long text, bytes or
            containers that are used again and again: each use may make a copy; containers and calls without end;
            whole numbers beyond 8 bytes.
        ValueError: cut short, or no pickle.
    """
    start, before = file.tell(), ""
    lengths: dict[int, int] = {}  # of text and bytes in the memo, by place; of containers -1
    length = held = taken = made = tuples = 0
    reused = False  # whether a container of the memo may be an argument of the next call
    for count, (name, argument) in enumerate(_opcodes(file)):
        if "PUT" in name or name == "MEMOIZE":
            place = len(lengths) if argument is None else int(argument)
            if place > count:
                raise pickle.UnpicklingError(f"an entry {place} of the memo after {count} steps")
            lengths[place] = length if before in TEXTS + BYTES else -1 if before in CONTAINERS + STORES else 0
        elif "GET" in name or name == "DUP":
            length = length if argument is None else lengths.get(int(argument), 0)
            taken, reused = taken + max(length, 0), reused or length < 0
        elif name in TEXTS + BYTES:
            length = len(argument)
            held += length
        elif name in CALLS + STORES:
            taken += held + 8 * count if reused and name in CALLS else 0  # all that may be in the container
            reused = False
        if taken > SPARE_BYTES and taken > SPARE_BYTES + 2 * (file.tell() - start):
            raise pickle.UnpicklingError("the same text, bytes or container again and again")
        elif name in LONG and not -LARGEST <= int(argument) < LARGEST and argument != TORCH_MARK:
            raise pickle.UnpicklingError("a whole number of more than 8 bytes")
        made, tuples = made + (name in MAKERS), tuples + name.startswith("TUPLE")
        if made > SPARE_OBJECTS + size // 16 or tuples > MAX_TUPLES:
            raise pickle.UnpicklingError("more containers and calls than a file of this size has")
        before = name


def _opcodes(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Names and arguments of a pickle's steps up to its end mark, where the file then stands."""
    name = ""
    while name != "STOP":
        byte = file.read(1).decode(ENCODING)
        if byte not in CODES:
            raise ValueError(f"no pickle: {byte!r} at byte {file.tell() - 1}" if byte else "it has no end mark")
        name, kind, argument = CODES[byte].name, CODES[byte].arg, None
        if name == "STRING":
            argument = file.readline()  # pickletools refuses what is not ASCII, and Python 2 wrote numbers so
        elif kind is not None:
            argument = kind.reader(file)
        yield name, argument


def unpack(value: Any) -> Any:
    """The array, of a [`PickledArray`]; else the value itself."""
    return value.value if type(value) is PickledArray else value
