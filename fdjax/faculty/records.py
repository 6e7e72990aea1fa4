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
