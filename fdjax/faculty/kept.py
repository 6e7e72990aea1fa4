"""Observations on disk: mapped into memory where whole, in parts while under way.

    outputs/IMAGES DIGEST/NAME-TEACHER DIGEST[-FORM]/       a whole one: about.json and
        probabilities.npy  features.npy  class_vectors.npy  labels.npy
    outputs/IMAGES DIGEST/.NAME-TEACHER DIGEST[-FORM]....parts/
        0000008192.npz                                      rows from 8192 on of one under way

A part, and a whole one, appears under its name by a rename. Observers of one teacher at the same
time write the same into files of their own, and the last to rename wins.
"""

import contextlib
import hashlib
import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fdjax import checkpoints, checks
from fdjax.data import npz
from fdjax.faculty import files
from fdjax.faculty.cards import Card

Keep: TypeAlias = Literal["float32", "float16"] | int
"""How an observation is kept: exactly, in half the space, or only so many likeliest labels."""

# Raised when the same weights and images would give other numbers, or other files, than before.
FORMAT = 2

_ABOUT = "about.json"
_ROWS = ("probabilities", "features", "labels")
_VECTORS = "class_vectors"

# The smallest number above zero in float16: a label that is rounded away keeps as much.
_LEAST = 2.0**-24
_LARGEST = 65504.0

Arrays = Mapping[str, np.ndarray]


class Place(NamedTuple):
    """Where an observation is kept, and what it is of.

    Attributes:
        folder: Of the whole one.
        about: What must be the same for it to be used.
        examples: Images that are observed.
        classes: Labels of the teacher.
    """

    folder: Path
    about: dict[str, Any]
    examples: int
    classes: int


def check(keep: Keep) -> None:
    """Refuses what is no way of keeping."""
    whole = isinstance(keep, int) and not isinstance(keep, bool) and keep > 0
    checks.require(
        whole or keep in ("float32", "float16"),
        f"`keep` must be float32, float16 or a number of labels, got {keep!r}.",
    )


def place(root: Path, card: Card, images_digest: str, examples: int, keep: Keep) -> Place:
    """The place of one teacher's observation of one set of images."""
    form = {"float32": "", "float16": "-float16"}.get(str(keep), f"-top{keep}")
    about = {
        "format": FORMAT,
        "images_digest": images_digest,
        "teacher_digest": card.digest,
        "preprocessing": repr(card.preprocessing),
        "keep": keep,
    }
    folder = root / "outputs" / images_digest / f"{card.name}-{card.digest}{form}"
    return Place(folder, about, examples, len(card.class_names))


def parsed(name: str) -> tuple[tuple[str, str] | None, str]:
    """Whose observation a folder is: name and digest of the teacher, and the name of a whole one.

    None where it is neither a whole one nor parts of one.
    """
    pattern = r"(\.?)((.+)-([0-9a-f]{64})(?:-float16|-top\d+)?)(\.[0-9a-f]{16}\.parts)?"
    match = re.fullmatch(pattern, name)
    if match is None or bool(match[1]) != bool(match[5]):
        return None, ""
    return (match[3], match[4]), match[2]


def seconds(folder: Path, card: Card) -> float:
    """What a whole observation took; below zero if it is none, or made with other preprocessing."""
    try:
        about = _about(folder)
    except OSError:
        return -1.0
    fresh = (about.get("format"), about.get("preprocessing")) == (FORMAT, repr(card.preprocessing))
    return float(about["seconds"]) if fresh else -1.0


def encoded(
    probabilities: np.ndarray, features: np.ndarray | None, keep: Keep, teacher: str
) -> dict[str, np.ndarray]:
    """What is written of some rows.

    Raises:
        InputError: If a feature is too large for float16.
    """
    known = {} if features is None else {"features": features}
    if keep == "float32":
        return {"probabilities": probabilities, **known}
    for name, array in known.items():
        checks.require(
            not array.size or float(np.abs(array).max()) <= _LARGEST,
            f"the features of teacher {teacher!r} go beyond {_LARGEST:g} and do not fit float16; "
            "keep them as float32.",
        )
        known[name] = array.astype(np.float16)
    if keep == "float16":
        return {"probabilities": np.maximum(probabilities, _LEAST).astype(np.float16), **known}
    kept = min(int(keep), probabilities.shape[1])
    labels = np.argpartition(probabilities, -kept, axis=1)[:, -kept:]
    likeliest = np.maximum(np.take_along_axis(probabilities, labels, axis=1), _LEAST)
    return {
        "probabilities": likeliest.astype(np.float16),
        "labels": labels.astype(np.int32),
        **known,
    }


def decoded(arrays: Arrays, classes: int) -> dict[str, np.ndarray]:
    """Probabilities, and features where known, in float32.

    What float16 rounds is made to sum to one again; the mass that is not of the likeliest labels
    is spread evenly over the others.
    """
    found = {name: array for name, array in arrays.items() if name != "labels"}
    if found["probabilities"].dtype == np.float32:
        return found
    said = np.asarray(found["probabilities"], np.float32)
    if "labels" in arrays:
        rest = np.maximum(1 - said.sum(axis=1, keepdims=True), 0)
        every = np.broadcast_to(rest / max(classes - said.shape[1], 1), (len(said), classes)).copy()
        np.put_along_axis(every, np.asarray(arrays["labels"], np.int64), said, axis=1)
        said = np.maximum(every, _LEAST)
    found["probabilities"] = said / said.sum(axis=1, keepdims=True)
    if "features" in found:
        found["features"] = np.asarray(found["features"], np.float32)
    return found


def read(place: Place) -> dict[str, np.ndarray] | None:
    """A whole observation, mapped into memory; None if there is none or one made otherwise.

    Raises:
        InputError: If it is of other images or another teacher: somebody moved it.
        OSError: If it is damaged.
    """
    folder = checkpoints.existing_folder(place.folder)
    if folder is None:
        return None
    about = _about(folder)
    for key in ("images_digest", "teacher_digest"):
        checks.require(
            about.get(key) == place.about[key],
            f"{folder} was not made for this teacher and these images: the {key} inside differs "
            "from its name, so it was moved by hand; delete it.",
        )
    if any(about.get(key) != value for key, value in place.about.items()):
        return None
    arrays = {}
    for name, digest in about["files"].items():
        path = folder / f"{name}.npy"
        arrays[name] = _mapped(path)
        if _sha256(path) != digest:
            raise OSError(f"{path.name} has changed")
    return _fitting(arrays, place)


def write(
    place: Place,
    rows: int,
    answer: Callable[[int, int], Arrays],
    class_vectors: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Makes an observation part by part and keeps it; parts that a kill has left are used.

    Where it cannot be kept, a warning says so, and nothing is lost but the copy for next time.

    Args:
        place: Of the observation.
        rows: Images of a part.
        answer: What is to be written of the images from `start` to `stop`.
        class_vectors: Of the teacher, where known.
    """
    began, starts = time.perf_counter(), range(0, place.examples, rows)
    parts = _parts_folder(place, rows)
    at_hand: dict[int, Arrays] = {}

    def part(start: int) -> Arrays:
        if start in at_hand:
            return at_hand[start]
        path = parts / f"{start:010d}.npz"
        with contextlib.suppress(OSError):
            return npz.read(path)
        made = answer(start, min(start + rows, place.examples))
        at_hand[start] = made
        if len(starts) > 1:
            with contextlib.suppress(OSError):
                parts.mkdir(parents=True, exist_ok=True)
                files.write_arrays(path, made)
                del at_hand[start]
        return made

    vectors = {} if class_vectors is None else {_VECTORS: class_vectors}

    new = files.beside(place.folder)
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _append(new, vectors, place.classes)
        for start in starts:
            _append(new, part(start), place.examples)
        digests = {path.stem: _sha256(path) for path in sorted(new.glob("*.npy"))}
        about = place.about | {"seconds": time.perf_counter() - began, "files": digests}
        (new / _ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
        checkpoints.put_folder(new, place.folder)
        shutil.rmtree(parts, ignore_errors=True)
        found = read(place)
        if found is not None:
            return found
        raise OSError("it was replaced meanwhile")
    except OSError as error:
        with contextlib.suppress(OSError):  # another observer was faster
            found = read(place)
            if found is not None:
                return found
        # The answer is at hand; a faculty on a read-only disk is no reason to lose it.
        warnings.warn(f"cannot keep {place.folder} for next time ({error})", stacklevel=5)
        made = [part(start) for start in starts]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]} | vectors
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _append(folder: Path, arrays: Arrays, examples: int) -> None:
    """Writes rows behind those written before; by plain writes, for a full disk to be an error."""
    for name, array in arrays.items():
        with (folder / f"{name}.npy").open("ab") as file:
            if file.tell() == 0:
                header = {
                    "descr": np.lib.format.dtype_to_descr(array.dtype),
                    "fortran_order": False,
                    "shape": (examples, *array.shape[1:]),
                }
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(array).data)


def _parts_folder(place: Place, rows: int) -> Path:
    """Named by all on which the parts depend."""
    text = json.dumps(place.about | {"rows": rows, "examples": place.examples}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return place.folder.with_name(f".{place.folder.name}.{digest}.parts")


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = files.parse_json(files.read_text(folder / _ABOUT, "it is made again"))
    except checks.InputError as error:
        raise OSError(f"{_ABOUT}: {error}") from error
    told = about.get("files") if isinstance(about, dict) else None
    known = isinstance(told, dict) and set(told) <= {*_ROWS, _VECTORS} and "probabilities" in told
    took = about.get("seconds") if known else None
    if not isinstance(took, int | float) or not 0 <= took < 1e12:
        raise OSError(f"{_ABOUT} is none of ours")
    return dict(about)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever hostile bytes make NumPy's parser raise
        raise OSError(f"{path.name} is no array ({error})") from error


def _fitting(arrays: dict[str, np.ndarray], place: Place) -> dict[str, np.ndarray]:
    """The arrays, if their types and shapes are those of this way of keeping."""
    exact = place.about["keep"] == "float32"
    number = np.float32 if exact else np.float16
    top = isinstance(place.about["keep"], int)
    width = min(place.about["keep"], place.classes) if top else place.classes
    wanted: dict[str, tuple[Any, tuple[int | None, ...]]] = {
        "probabilities": (number, (place.examples, width)),
        "features": (number, (place.examples, None)),
        "labels": (np.int32, (place.examples, width)),
        _VECTORS: (np.float32, (place.classes, None)),
    }
    if ("labels" in arrays) != top:
        raise OSError("it is kept otherwise than it says")
    for name, array in arrays.items():
        dtype, shape = wanted[name]
        try:
            checks.shape(name, array, shape)
        except checks.InputError as error:
            raise OSError(str(error)) from error
        if array.dtype != dtype:
            raise OSError(f"{name} are {array.dtype}")
    labels = arrays.get("labels")
    if labels is not None and not ((labels >= 0) & (labels < place.classes)).all():
        raise OSError("labels go beyond those of the teacher")
    return arrays


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
