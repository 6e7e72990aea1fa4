"""How often each training image took part while a teacher learnt, kept beside its card."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from fdjax import checks
from fdjax.faculty import files

FILE = "participation.npz"


class Participation(NamedTuple):
    """The record of a self-regulated training, see `regulation`.

    Attributes:
        counts: How often each training image took part, in the order of the task's images.
        task_digest: `data.Task.digest` of the task that the teacher was trained for.
    """

    counts: np.ndarray
    task_digest: str


def write(folder: Path, participation: Participation, teacher_digest: str) -> None:
    """Puts the record into a teacher's folder.

    Raises:
        InputError: If the counts are not whole numbers of at least 0, one an image.
    """
    counts = np.asarray(participation.counts)
    checks.shape("counts", counts, (None,))
    checks.require(
        counts.size > 0 and np.issubdtype(counts.dtype, np.integer) and bool((counts >= 0).all()),
        f"`counts` of a participation must be whole numbers of at least 0, got {counts.dtype} "
        f"of shape {counts.shape}.",
    )
    files.write_arrays(
        folder / FILE,
        {
            "counts": counts.astype(np.int32),
            "task_digest": np.asarray(participation.task_digest, np.str_),
            "teacher_digest": np.asarray(teacher_digest, np.str_),
        },
    )


def read(folder: Path, name: str, teacher_digest: str, task_digest: str) -> np.ndarray:
    """The counts in a teacher's folder, for the images of a task.

    Args:
        folder: Of the teacher.
        name: Of the teacher, for messages.
        teacher_digest: Of its weights.
        task_digest: Of the task whose images the counts are wanted for.

    Raises:
        InputError: If there is no record, or it is damaged, of other weights, or of another
            task.
    """
    path = folder / FILE
    again = "train the teacher again, by `python -m experiments.build_faculty --confidence=...`"
    checks.require(
        path.exists(),
        f"teacher {name!r} was not trained with self-regulation, so it knows no significance of "
        f"its images (there is no {path}); {again} in another folder.",
    )
    try:
        arrays = files.read_arrays(path)
        kept = {key: arrays[key] for key in ("counts", "task_digest", "teacher_digest")}
    except (OSError, KeyError) as error:
        raise checks.InputError(f"cannot read {path} ({error}); {again}.") from error
    checks.require(
        str(kept["teacher_digest"]) == teacher_digest,
        f"{path} is of other weights than those of teacher {name!r}; {again}.",
    )
    checks.require(
        str(kept["task_digest"]) == task_digest,
        f"the significance of images that teacher {name!r} found is of another data set (task "
        f"digest {str(kept['task_digest'])[:12]}, wanted {task_digest[:12]}); give the images and "
        "classes that it was trained on, or take the significance from its transport cost.",
    )
    return kept["counts"]
