"""What teachers of any framework say of a task, from a folder of npz files."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fdjax import checks
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
    teachers, names = zip(*(_teacher(path, len(labels)) for path in paths), strict=True)
    return Given(tuple(path.stem for path in paths), teachers, names, labels, class_names)


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
    labels, names = arrays["labels"], tuple(map(str, np.atleast_1d(arrays["class_names"])))
    checks.require(
        labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer),
        f"`labels` of {path} must be whole numbers, one an example; got {labels.dtype} of shape "
        f"{labels.shape}.",
    )
    checks.labels(f"labels of {path}", labels, len(names), unlabelled=True)
    checks.every_class_present(f"labels of {path}", labels, len(names))
    return labels.astype(np.int32), names


def _teacher(path: Path, examples: int) -> tuple[TeacherOutputs, tuple[str, ...]]:
    arrays: dict[str, Any] = _arrays(path, KNOWN, {"probabilities"})
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
    names = np.atleast_1d(arrays.get("class_names", default))
    checks.shape(f"class_names of {path}", names, (classes,))
    outputs = TeacherOutputs(
        probabilities=arrays["probabilities"],
        features=arrays.get("features"),
        class_vectors=arrays.get("class_vectors"),
        class_mask=np.ones(classes, bool),
        source_accuracy=np.float32(arrays.get("source_accuracy", np.nan)),
        num_parameters=np.float32(arrays.get("num_parameters", np.nan)),
    )
    return outputs, tuple(map(str, names))
