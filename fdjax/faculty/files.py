"""Files of a faculty: arrays and texts that are whole or absent, and the digests of arrays."""

import contextlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fdjax import checks, data

MANIFEST = "manifest.json"
CARD = "card.json"
VARIABLES = "variables"
OUTPUTS = "outputs.npz"


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: of their names, types, shapes and contents."""
    names = sorted(arrays)
    return data.digest(np.asarray(names, np.str_), *(np.asarray(arrays[name]) for name in names))


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one."""
    new = _beside(path)
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def read_text(path: Path, mend: str) -> str:
    """Contents of a file.

    Raises:
        InputError: If it is missing or unreadable; `mend` ends the message.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise checks.InputError(f"cannot read {path} ({_reason(error)}); {mend}.") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file so that a kill leaves the old one or the new one."""
    new = _beside(path)
    with new.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(new, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Contents of an npz file.

    Raises:
        OSError: If it is missing, cut short, damaged (zip holds a checksum of each array),
            or no npz file.
    """
    try:
        # Opened here, since NumPy leaves the file of a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, ValueError, EOFError, AttributeError) as error:
        raise OSError(f"no complete npz file: {error}") from error


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns failures of the disk into one sentence that names `place`."""
    try:
        yield
    except OSError as error:
        raise checks.InputError(
            f"cannot write to {place} ({_reason(error)}); choose a folder you may write to, "
            "with space left."
        ) from error


def _beside(path: Path) -> Path:
    # The process number keeps two observers of one teacher out of each other's way.
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
