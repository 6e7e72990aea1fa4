"""Reports and JSON files that are written whole or not at all."""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from fdjax import checks
from fdjax.reports.tables import printable

PathLike: TypeAlias = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
    """A temporary path beside `path` that takes its place if the block succeeds.

    Raises:
        InputError: If the block or this cannot write.
    """
    final = pathlib.Path(path)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    with checks.writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)


def _plain(tree: Any, place: str) -> Any:
    """`tree` in the types that JSON knows; what is not finite becomes null."""
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, os.PathLike):
        return os.fspath(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_asdict"):
        tree = tree._asdict()
    if isinstance(tree, Mapping):
        return {str(key): _plain(leaf, f"{place}.{key}") for key, leaf in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(leaf, f"{place}[{number}]") for number, leaf in enumerate(tree)]
    if hasattr(tree, "tolist"):  # NumPy's and JAX's arrays and scalars
        return _plain(tree.tolist(), place)
    raise checks.InputError(
        f"`{place}` is a {type(tree).__name__}, which JSON cannot hold; "
        "turn it into numbers, texts, lists or dicts first."
    )


def write_json(path: PathLike, tree: Any) -> pathlib.Path:
    """Writes nested dicts, lists, numbers and arrays as JSON; all of the file or none.

    NaN and infinity, which JSON lacks, become null. Tuples become lists, named tuples dicts.

    Returns:
        The path written.

    Raises:
        InputError: If `tree` holds something else; the message says where.
    """
    text = json.dumps(_plain(tree, "tree"), indent=2, allow_nan=False, ensure_ascii=False)
    return write_text(path, text + "\n")


def write_text(path: PathLike, text: str) -> pathlib.Path:
    """Writes a text; all of the file or none.

    Returns:
        The path written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return pathlib.Path(path)


def write(folder: PathLike, title: str, sections: Sequence[str | os.PathLike[str]]) -> pathlib.Path:
    """Writes `folder`/report.md; all of the file or none.

    Args:
        folder: Where the report goes; made if it is missing.
        title: Heading of the report.
        sections: In order, Markdown (a `str`) or a picture (a `pathlib.Path` of a file
            inside `folder`, absolute or from there), to which the report links.

    Returns:
        The path of the report.

    Raises:
        InputError: If a picture is missing or lies outside `folder`.
    """
    root = pathlib.Path(folder)
    blocks = [f"# {printable(title)}"]
    for section in sections:
        if isinstance(section, str):
            blocks.append(section.strip("\n"))
            continue
        picture = (root / section).resolve()
        checks.require(
            picture.is_relative_to(root.resolve()),
            f"`sections` names {section}, which lies outside {root}; save the picture there.",
        )
        checks.require(
            picture.is_file(), f"`sections` names {section}, which is missing; plot it first."
        )
        link = picture.relative_to(root.resolve()).as_posix()
        blocks.append(f"![{picture.stem.replace('_', ' ')}](<{link}>)")
    return write_text(root / "report.md", "\n\n".join(blocks) + "\n")
