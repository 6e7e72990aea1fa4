"""What a teacher can be asked of its own training: which images took part, and how often."""

import numpy as np

from fdjax import checks, data
from fdjax.faculty import files, records
from fdjax.faculty.repository import Root, read_card, teacher_folder


def participation(root: Root, name: str, task: data.Task) -> np.ndarray:
    """How often each training image of a task took part while a teacher learnt from them.

    Args:
        root: A faculty.
        name: Of the teacher.
        task: The very task that it was trained for: images, labels and class names.

    Returns:
        Counts, in the order of the task's training images; see `regulation.significance`.

    Raises:
        InputError: If there is no such teacher, its training was not self-regulated, or its
            record is damaged, of other weights, or of another data set.
    """
    card = read_card(root, name)
    path = teacher_folder(root, name) / records.FILE
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
        str(kept["teacher_digest"]) == card.digest,
        f"{path} is of other weights than those of teacher {name!r}; {again}.",
    )
    checks.require(
        str(kept["task_digest"]) == task.digest,
        f"the significance of images that teacher {name!r} found is of another data set (task "
        f"digest {str(kept['task_digest'])[:12]}, wanted {task.digest[:12]}); give the images and "
        "classes that it was trained on, or take the significance from its transport cost.",
    )
    return kept["counts"]
