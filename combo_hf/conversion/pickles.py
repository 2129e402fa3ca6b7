"""Numbers out of foreign pickles, and nothing else.

Pickled numpy arrays are not rebuilt by numpy: a hand-made state of a `dtype` makes it read outside of the array (numpy
2.4: a crash). Its classes are replaced by others of the same names, which check what they get. And a pickle is looked
through before it is read: a few bytes can ask for a memo of gigabytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from typing import Any

import numpy as np


ENCODING = "latin1"  # of the bytes of Python 2
NUMBERS = "fiub"  # kinds of dtypes


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

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if type(kind) is not PickledDtype or any(type(side) is not int or side < 0 for side in shape):
            raise pickle.UnpicklingError("an array without type or shape")
        data = data.encode(ENCODING) if isinstance(data, str) else data
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError("an array whose shape does not fit its numbers")
        self.value = np.frombuffer(bytes(data), kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: Any, shape: Any, code: Any) -> PickledArray:
    if kind is not PickledArray:
        raise pickle.UnpicklingError("refused a subclass of arrays")
    return PickledArray()


def _scalar(kind: Any, data: Any) -> PickledArray:
    array = PickledArray()
    array.__setstate__((1, (), kind, False, data))
    return array


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> PickledArray:
    """What numpy writes from pickle protocol 5 on, the default of Python 3.14."""
    array = PickledArray()
    array.__setstate__((1, shape, kind, order == "F", data))
    if order == "K" and axes is not None:
        array.value = array.value.transpose(axes)
    return array


def _encode(text: str, encoding: str) -> bytes:
    if encoding != ENCODING:
        raise pickle.UnpicklingError(f"refused the encoding {encoding!r}")
    return text.encode(ENCODING)


def _no_bytes() -> bytes:
    return b""


CODES = {code.code: code for code in pickletools.opcodes}
# by the names of numpy 2 and 1
NUMPY = {"numpy.dtype": PickledDtype, "numpy.ndarray": PickledArray}
for _module in ("numpy._core.multiarray", "numpy.core.multiarray"):
    NUMPY |= {f"{_module}._reconstruct": _reconstruct, f"{_module}.scalar": _scalar}
KNOWN = NUMPY | {
    "numpy._core.numeric._frombuffer": _frombuffer,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
}


class ArrayUnpickler(pickle.Unpickler):
    """Builds arrays ([`PickledArray`]) and plain containers; everything else is refused before it can run."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in KNOWN:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        return KNOWN[f"{module}.{name}"]


def load_arrays(data: bytes) -> Any:
    """The content of a pickle of arrays and plain containers.

    Raises:
        Exception: any, if the pickle is damaged or holds something else.
    """
    check_pickle(data)
    return ArrayUnpickler(io.BytesIO(data), encoding=ENCODING).load()


def check_pickle(data: bytes) -> None:
    """Refuse a pickle that would take memory which its bytes do not pay for.

    Raises:
        pickle.UnpicklingError: a place in the memo far beyond the number of its entries.
        ValueError: cut short, or no pickle.
    """
    file, count, name = io.BytesIO(data), 0, ""
    while name != "STOP":
        byte = file.read(1).decode(ENCODING)
        if byte not in CODES:
            raise ValueError(
                f"no pickle: {byte!r} at byte {file.tell() - 1}" if byte else "it ends without its end mark"
            )
        name, kind = CODES[byte].name, CODES[byte].arg
        if name == "STRING":
            file.readline()  # pickletools refuses what is not ASCII, and Python 2 wrote numbers so
        elif kind is not None:
            argument = kind.reader(file)
            if "PUT" in name and argument > count:
                raise pickle.UnpicklingError(f"an entry {argument} of the memo after {count} steps")
        count += 1


def unpack(value: Any) -> Any:
    """The array, of a [`PickledArray`]; else the value itself."""
    return value.value if type(value) is PickledArray else value
