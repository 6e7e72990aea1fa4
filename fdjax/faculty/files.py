"""Files of a faculty: whole or absent, inside the faculty, and their digests."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fdjax import checks, data
from fdjax.data import npz

MANIFEST = "manifest.json"
CARD = "card.json"
VARIABLES = "variables"
OUTPUTS = "outputs.npz"
ONNX = "model.onnx"
LOCK = ".lock"

# A manifest of a million names takes some thirty.
_LARGEST_TEXT = 2**26


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: of their names, types, shapes and contents."""
    names = sorted(arrays)
    return data.digest(np.asarray(names, np.str_), *(np.asarray(arrays[name]) for name in names))


def write_text(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one."""
    new = beside(path)
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def read_text(path: Path, mend: str) -> str:
    """Contents of a file.

    Raises:
        InputError: If it is missing, unreadable or far too long; `mend` ends the message.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("No such file")
        if path.stat().st_size > _LARGEST_TEXT:
            raise OSError("it is far too long")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise checks.InputError(f"cannot read {path} ({reason}); {mend}.") from error


def parse_json(text: str) -> Any:
    """What a text says as JSON.

    Raises:
        InputError: If it is none, or holds a number or a nest that Python does not take.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise checks.InputError(f"it is no JSON ({error}).") from error


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an npz file so that a kill leaves the old one or the new one."""
    new = beside(path)
    with new.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    os.replace(new, path)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Contents of an npz file, see `data.npz.read`."""
    return npz.read(path)


def require_inside(root: Path, path: Path) -> None:
    """Refuses to write where a link of a faculty made elsewhere leads out of it."""
    checks.require(
        path.resolve().is_relative_to(root.resolve()),
        f"{path} is a link that leads out of the faculty at {root}; make it a folder.",
    )


def beside(path: Path) -> Path:
    """Hidden name for what will take the place of `path`."""
    # Two observers of one teacher keep out of each other's way.
    return path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident():x}.new")
