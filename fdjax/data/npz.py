"""Arrays out of an .npz file that nobody vouches for: read whole or refused, never executed."""

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

# Of the numbers and texts that NumPy stores without pickle; times have no use here.
_KINDS = "biufcSU"

# Deflate makes zeros a thousand times smaller, real arrays hardly a hundred times. What unpacks
# to little is harmless whatever its ratio.
_HARMLESS_BYTES, _LARGEST_RATIO = 2**28, 200

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_PIECE = 2**20


def read(path: Path, *, only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name.

    No memory is taken before the sizes that the file claims are known to be those it has.

    Args:
        path: Of the file.
        only: Names of the arrays to read, where the file has them; by default all.

    Raises:
        OSError: If it is missing, cut short, damaged (zip holds a checksum of each array), no
            .npz file, unpacks to far more than its size, or holds anything but plain arrays of
            numbers and texts.
    """
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _refuse_bombs(members, path.stat().st_size)
            found: dict[str, np.ndarray] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if only is not None and name not in only:
                    continue
                if name in found or name == member.filename:
                    raise OSError(f"{member.filename!r} is no array, or is there twice")
                found[name] = _array(name, archive, member)
            return found
    except OSError:
        raise
    except Exception as error:  # whatever hostile bytes make the parsers of zip and NumPy raise
        raise OSError(f"no complete npz file: {error}") from error


def _refuse_bombs(members: list[zipfile.ZipInfo], size: int) -> None:
    # zipfile gives no more bytes of a member than are claimed here; members may overlap.
    unpacked = sum(member.file_size for member in members)
    if unpacked > _HARMLESS_BYTES and unpacked > _LARGEST_RATIO * size:
        raise OSError(
            f"its {size} bytes would unpack to {unpacked}; save it with numpy.savez, unpacked"
        )


def _array(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        if version not in _HEADERS:
            raise OSError(f"{name} is of version {version} of NumPy's format")
        shape, fortran, dtype = _HEADERS[version](content)
        if dtype.kind not in _KINDS or dtype.itemsize == 0:
            raise OSError(
                f"{name} cannot be read without pickle, as it holds {dtype}; save it as an array "
                "of numbers or of text (dtype=str)"
            )
        expected = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or expected != member.file_size - content.tell():
            raise OSError(f"{name} claims the shape {shape} of {dtype}, which is not what is there")
        buffer = bytearray(expected)
        _fill(buffer, content)
    if dtype.kind == "U" and expected:
        codes = np.frombuffer(buffer, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if (codes > 0x10FFFF).any() or ((codes >= 0xD800) & (codes <= 0xDFFF)).any():
            raise OSError(f"{name} holds text that is no Unicode")
    return np.ndarray(shape, dtype, buffer, order="F" if fortran else "C")


def _fill(buffer: bytearray, content: Any) -> None:
    view = memoryview(buffer)
    place = 0
    while place < len(buffer):
        piece = content.read(min(_PIECE, len(buffer) - place))
        if not piece:
            raise EOFError("it is cut short")
        view[place : place + len(piece)] = piece
        place += len(piece)
    # At the end, and only there, the checksum is looked at.
    content.read(1)
