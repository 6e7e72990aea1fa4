"""Prepares a data set of tensorflow-datasets so that `fdjax.data.load` can read it.

The one place that needs TensorFlow, once for each data set:

    pip install 'fdjax[prepare]'
    python -m fdjax.data.prepare mnist --data_dir ~/tensorflow_datasets

Files are downloaded by tensorflow-datasets and checked against its checksums. Where there is no
network, bring the files yourself, in one of two ways:

*   under the names that they have at their source, in a folder given as --manual_dir (one
    folder a data set);
*   under the names of the download cache, in a folder given as --download_dir, each with a
    file beside it that has `.INFO` added to its name and holds `{}`.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from fdjax import checks
from fdjax.data import records, sources


def prepare(
    name: str,
    *,
    data_dir: str | Path | None = None,
    manual_dir: str | Path | None = None,
    download_dir: str | Path | None = None,
) -> Path:
    """Downloads a data set and writes its records, unless they are there already.

    Args:
        name: As tensorflow-datasets calls it, with its config: `mnist`, `cmaterdb/bangla`.
        data_dir: Where the records go; by default $TFDS_DATA_DIR or ~/tensorflow_datasets.
        manual_dir: Folder of files that need not be downloaded.
        download_dir: Cache of downloads; by default `downloads` in `data_dir`.

    Returns:
        The folder of the records.

    Raises:
        InputError: If TensorFlow is missing, the name is unknown or a folder is missing.
    """
    manual, downloads = (
        None if folder is None else Path(folder).expanduser()
        for folder in (manual_dir, download_dir)
    )
    checks.require(manual is None or manual.is_dir(), f"--manual_dir: there is no folder {manual}.")
    data_dir = Path(data_dir or records.default_data_dir()).expanduser()
    builder = records.find_builder(name, data_dir)
    if builder is None:
        raise checks.InputError(sources.unknown(name))
    if not builder.info.splits:
        checks.require(
            importlib.util.find_spec("tensorflow") is not None,
            "preparing a data set needs TensorFlow (reading it does not); install it by: "
            "pip install 'fdjax[prepare]'",
        )
    records.prepare(name, builder, data_dir, manual_dir=manual, download_dir=downloads)
    return Path(builder.data_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line; returns 0, or 1 after a message on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m fdjax.data.prepare", description=__doc__.splitlines()[0]
    )
    parser.add_argument("name", help="data set, with its config: mnist, cmaterdb/bangla")
    parser.add_argument(
        "--data_dir", help="where records go; default $TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    parser.add_argument("--manual_dir", help="folder of files that need not be downloaded")
    parser.add_argument("--download_dir", help="cache of downloads; default DATA_DIR/downloads")
    given = parser.parse_args(arguments)
    try:
        folder = prepare(
            given.name,
            data_dir=given.data_dir,
            manual_dir=given.manual_dir,
            download_dir=given.download_dir,
        )
    except checks.InputError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{given.name} is prepared in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
