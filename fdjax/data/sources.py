"""One door to every data set: a name, an .npz file, or a folder of images."""

import difflib
from pathlib import Path

from fdjax import checks
from fdjax.data import files, records
from fdjax.data.tasks import Task

_DIGITS = "digits"
_FORMS = (
    f"give {_DIGITS!r}, a name of tensorflow-datasets (with its config, as cmaterdb/bangla), the "
    "path of an .npz file, or the path of a folder of class folders of images"
)


def load(name: str, *, data_dir: str | Path | None = None) -> Task:
    """The task called `name`, with uint8 images unless its own file says otherwise.

    Four forms of `name` are understood, tried in this order:

    * `digits`: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, whose values 0..16 are
      stretched to 0..255; prepared in `data_dir` at the first call, without a network.
    * a path that ends in `.npz`, as it stands or else within `data_dir`: see
      `files.read_arrays`.
    * a name of tensorflow-datasets, such as `mnist` or `cmaterdb/bangla`, prepared in
      `data_dir` beforehand: see `records.read_builder`. It wins over a folder of the same
      name; write `mnist/` for the folder.
    * a folder of class folders of images: see `files.read_folder`.

    Args:
        name: What to load.
        data_dir: Where tensorflow-datasets keeps its data; by default $TFDS_DATA_DIR or
            ~/tensorflow_datasets.

    Raises:
        InputError: If there is no such data set, it is not prepared, or a file is faulty;
            the message says what mends it.
    """
    data_dir = Path(data_dir or records.default_data_dir()).expanduser()
    checks.require(bool(name), f"the name of a data set must not be empty; {_FORMS}.")
    if name == _DIGITS:
        return records.read_digits(data_dir)
    path = Path(name).expanduser()
    if path.suffix == ".npz":
        within = data_dir / path
        return files.read_arrays(within if within.exists() and not path.exists() else path)
    if path.is_absolute() or name.startswith(".") or name.endswith("/"):
        return files.read_folder(path)
    builder = records.find_builder(name, data_dir)
    if builder is not None:
        return records.read_builder(name, builder, data_dir)
    if path.is_dir():
        return files.read_folder(path)
    raise checks.InputError(unknown(name))


def unknown(name: str) -> str:
    """The message for a name that is nothing we know, with the names most like it."""
    import tensorflow_datasets as tfds

    known = [_DIGITS, *tfds.list_builders(with_community_datasets=False)]
    close = difflib.get_close_matches(name.split("/")[0].lower(), known, n=3)
    meant = f"did you mean {' or '.join(close)}? Else " if close else ""
    return f"there is no data set {name!r}; {meant}{_FORMS}."
