"""Tables of a run's numbers, for Markdown and for the terminal."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fdjax import checks

_FIGURE = r"\d[\d,]*(\.\d+)?(e[-+]?\d+)?"
_NUMBER = re.compile(rf"[-+]?{_FIGURE}( ± {_FIGURE})?( ?[%x])?")


def printable(text: str) -> str:
    """Shows control and invisible characters as escapes: a name must not steer a terminal."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char)[0] == "C" else char
        for char in text
    )


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, np.generic) or (hasattr(value, "item") and np.ndim(value) == 0):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        size = abs(value)
        if size == 0 or math.isinf(size) or 10.0**-digits <= size < 1e6:
            return f"{value:.{digits if size < 1000 else 0}f}"
        return f"{value:.{max(digits - 1, 0)}e}"
    return printable(str(value))


def _cells(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None, digits: int
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Column names, texts of the cells, and for each column whether it holds only numbers."""
    checks.require(len(rows) > 0, "`rows` is empty: a table needs at least one row.")
    known = list(dict.fromkeys(name for row in rows for name in row))
    names = known if columns is None else list(columns)
    for name in names:
        checks.choice("columns", name, known)
    cells = [[_cell(row.get(name), digits) for name in names] for row in rows]
    numeric = [
        all(text in ("-", "inf", "-inf") or _NUMBER.fullmatch(text) for text in column)
        for column in zip(*cells, strict=True)
    ]
    return names, cells, numeric


def table(
    rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str] | None = None, digits: int = 3
) -> str:
    """Markdown table, columns padded so that the source is readable too.

    Args:
        rows: Cells by column name; a missing cell, None and NaN show as "-".
        columns: Columns to show, in order; by default all, in order of first appearance.
        digits: Decimals of a fraction; from 1,000 on there are none, and very small and
            very large ones are written as 1.23e-07.

    Returns:
        The table's lines, each ended by a newline. Columns of numbers (also of texts such
        as "0.91 ± 0.02") are aligned right.

    Raises:
        InputError: If there is no row, or a column that no row has is asked for.
    """
    names, cells, numeric = _cells(rows, columns, digits)
    # A pipe would end the cell and "<" would open a tag.
    escaped = [
        [text.replace("|", "\\|").replace("<", "\\<") for text in line]
        for line in [list(map(printable, names)), *cells]
    ]
    widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]
    rule = [
        "-" * (width - right) + ":" * right for width, right in zip(widths, numeric, strict=True)
    ]
    lines = [
        [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        for line in escaped
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in [lines[0], rule, *lines[1:]])


def print_table(
    rows: Sequence[Mapping[str, Any]],
    title: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    digits: int = 3,
) -> None:
    """Prints `rows` to the terminal; the arguments are those of `table`."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    names, cells, numeric = _cells(rows, columns, digits)
    shown = rich.table.Table(
        title=rich.text.Text(printable(title)) if title else None,
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for name, right in zip(names, numeric, strict=True):
        # Text keeps a name with square brackets from being read as markup.
        header = rich.text.Text(printable(name))
        # A number broken over two lines cannot be read; a long name may end in an ellipsis.
        shown.add_column(header, justify="right" if right else "left", no_wrap=True)
    for line in cells:
        shown.add_row(*map(rich.text.Text, line))
    console = rich.console.Console()
    # A file or a pipe has no width to keep to.
    (console if console.is_terminal else rich.console.Console(width=200)).print(shown)
