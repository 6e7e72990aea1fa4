"""What teachers of any framework say of a task, from a folder of npz files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fdjax import checks, data
from fdjax.faculty import files
from fdjax.types import TeacherOutputs

LABELS = "labels.npz"
"""File of the task itself: `labels` (whole numbers, -1 where unknown) and `class_names`."""

KNOWN = {
    *("probabilities", "features", "class_vectors", "class_names"),
    *("source_accuracy", "num_parameters"),
}
"""Arrays of a teacher's file; only `probabilities` must be there."""


class Given(NamedTuple):
    """A task and its teachers as they were handed in.

    Attributes:
        names: Of the teachers: the names of their files.
        teachers: What each says of the examples.
        teacher_classes: Names of the labels of each teacher.
        labels: Class of each example.
        class_names: Of the task.
    """

    names: tuple[str, ...]
    teachers: tuple[TeacherOutputs, ...]
    teacher_classes: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    class_names: tuple[str, ...]


def read(folder: str) -> Given:
    """Reads `labels.npz` and one npz file a teacher; nothing in them is run as code.

    Raises:
        InputError: If a file is missing, damaged or does not fit the labels; it names the file.
            Probabilities that are none (NaN, or a sum other than one) are no error of the
            folder: that teacher alone has no score.
    """
    place = Path(folder)
    checks.require(
        (place / LABELS).is_file(),
        f"--outputs: there is no {place / LABELS}; write the labels of the task's examples there, "
        "`labels` and `class_names`.",
    )
    labels, class_names = _labels(place / LABELS)
    paths = sorted(path for path in place.glob("*.npz") if path.name != LABELS)
    checks.require(
        bool(paths),
        f"--outputs: {place} holds no teacher; write one npz file for each beside {LABELS}.",
    )
    for path in paths:
        checks.text("name of a file of --outputs", path.stem)
    teachers, names = zip(*(_teacher(path, len(labels)) for path in paths), strict=True)
    return Given(tuple(path.stem for path in paths), teachers, names, labels, class_names)


def of_images(path: Path) -> tuple[TeacherOutputs, tuple[str, ...], str]:
    """What one teacher says of images that its file tells, too.

    Args:
        path: An npz file with the arrays of `KNOWN`, and `images` or `images_digest`.

    Returns:
        Its outputs; the names of its labels, none if the file does not tell them; the digest of
        the images.

    Raises:
        InputError: As `read`, or if it does not tell the images.
    """
    arrays = _arrays(path, {*KNOWN, "images", "images_digest"}, {"probabilities"})
    images: Any = arrays.pop("images", None)
    told = arrays.pop("images_digest", None)
    checks.require(
        (images is None) != (told is None),
        f"{path} must tell of which images it is: by one of `images`, as they were loaded, and "
        "`images_digest`, what fdjax.data.digest says of them.",
    )
    digest = str(told) if images is None else data.digest(images)
    checks.require(
        re.fullmatch("[0-9a-f]{64}", digest) is not None,
        f"`images_digest` of {path} must be 64 hexadecimal digits.",
    )
    examples = len(np.atleast_1d(arrays["probabilities"]))
    checks.require(
        images is None or np.shape(images)[:1] == (examples,),
        f"{path} has probabilities of {examples} examples, but images of shape {np.shape(images)}.",
    )
    named = "class_names" in arrays
    outputs, names = _outputs_of(path, arrays, examples)
    return outputs, names if named else (), digest


def _arrays(path: Path, known: set[str], needed: set[str]) -> dict[str, np.ndarray]:
    try:
        arrays = files.read_arrays(path)
    except OSError as error:
        raise checks.InputError(f"cannot read {path} ({error}); write it anew.") from error
    for name in needed - set(arrays):
        raise checks.InputError(f"{path} has no array `{name}`; write it anew with one.")
    for name in sorted(set(arrays) - known):
        checks.choice(f"an array of {path}", name, sorted(known))
    return arrays


def _labels(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    arrays = _arrays(path, {"labels", "class_names"}, {"labels", "class_names"})
    labels, names = arrays["labels"], _names(path, arrays["class_names"])
    checks.require(
        labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
        f"`labels` of {path} must be whole numbers, one an example; got {labels.dtype} of shape "
        f"{labels.shape}.",
    )
    checks.labels(f"labels of {path}", labels, len(names), unlabelled=True)
    checks.every_class_present(f"labels of {path}", labels, len(names))
    return labels.astype(np.int32), names


def _teacher(path: Path, examples: int) -> tuple[TeacherOutputs, tuple[str, ...]]:
    return _outputs_of(path, _arrays(path, KNOWN, {"probabilities"}), examples)


def _outputs_of(
    path: Path, arrays: dict[str, Any], examples: int
) -> tuple[TeacherOutputs, tuple[str, ...]]:
    for name in ("probabilities", "features", "class_vectors"):
        if name in arrays:
            array = arrays[name]
            checks.require(
                array.ndim == 2 and np.issubdtype(array.dtype, np.floating),
                f"`{name}` of {path} must be fractions with two axes; got {array.dtype} of shape "
                f"{array.shape}.",
            )
            # The least that XLA and LAPACK compute with.
            arrays[name] = array.astype(np.float32)
    classes = arrays["probabilities"].shape[1]
    checks.require(
        len(arrays["probabilities"]) == examples,
        f"{path} has probabilities of {len(arrays['probabilities'])} examples, but {LABELS} has "
        f"labels of {examples}; run the teacher on the same examples in the same order.",
    )
    width = None
    if "features" in arrays:
        checks.shape(f"features of {path}", arrays["features"], (examples, None))
        width = arrays["features"].shape[1]
    if "class_vectors" in arrays:
        checks.shape(f"class_vectors of {path}", arrays["class_vectors"], (classes, width))
    default = np.arange(classes).astype(str)
    names = _names(path, arrays.get("class_names", default))
    checks.shape(f"class_names of {path}", names, (classes,))
    known = {key: _number(path, arrays, key) for key in ("source_accuracy", "num_parameters")}
    outputs = TeacherOutputs(
        probabilities=arrays["probabilities"],
        features=arrays.get("features"),
        class_vectors=arrays.get("class_vectors"),
        class_mask=np.ones(classes, bool),
        **known,
    )
    return outputs, names


def _names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    checks.require(
        names.ndim <= 1 and names.dtype.kind in "Uiu",
        f"`class_names` of {path} must be a list of texts, got {names.dtype} of shape "
        f"{names.shape}.",
    )
    texts = tuple(map(str, np.atleast_1d(names)))
    for text in texts:
        checks.text(f"class_names of {path}", text)
    return texts


def _number(path: Path, arrays: Mapping[str, np.ndarray], key: str) -> np.float32:
    array = arrays.get(key, np.asarray(np.nan))
    checks.require(
        array.size == 1 and array.dtype.kind in "iuf",
        f"`{key}` of {path} must be a number, got {array.dtype} of shape {array.shape}.",
    )
    return np.float32(array.item())
