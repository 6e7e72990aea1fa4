"""Pictures of rankings, costs, plans and training curves, as PNG files."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fdjax import checks
from fdjax.reports.files import PathLike, replacing
from fdjax.reports.tables import printable

Point: TypeAlias = tuple[SupportsFloat, SupportsFloat | ArrayLike]
"""A step of training and its value, or its values, one for each seed."""

# Okabe and Ito's colours, told apart with any kind of colour vision; yellow is too pale for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
_DPI = 150
_LONGEST_NAME = 28
# Inches a class takes in a heat map, and the most that all rows or columns may take together.
_ROW, _COLUMN, _LARGEST = 0.17, 0.24, 18.0


def _literal(text: str) -> str:
    """`text` as matplotlib shows it letter by letter: no control characters, no formulas."""
    return printable(str(text)).replace("$", r"\$")


def _label(name: str) -> str:
    """`name`, cut to a length that a picture has room for."""
    long = len(str(name)) > _LONGEST_NAME
    return _literal(f"{str(name)[: _LONGEST_NAME - 1]}…" if long else name)


def _figure(width: float, height: float) -> Any:
    """A figure that draws without pyplot, so that no global state changes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: PathLike) -> pathlib.Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return pathlib.Path(path)


def _clean(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, length=3)


def _areas(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that each box shares with each other box; a box is (left, low, right, high)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)


def _write_names(axes: Any, points: np.ndarray, names: Sequence[str]) -> None:
    """Puts each name beside its point, at the nearest of some places where it covers nothing.

    The layout must be drawn and frozen: the places hold only while the axes stay put.
    """
    from matplotlib.text import Text

    inside = axes.get_window_extent().extents[None]
    per_point = axes.figure.dpi / 72
    pixels = axes.transData.transform(points)
    taken = list(np.hstack([pixels - 4 * per_point, pixels + 4 * per_point]))
    taken += [text.get_window_extent().extents for text in axes.texts]
    taken += [line.get_window_extent().padded(per_point).extents for line in axes.lines]
    # Nearest first: beside, above, below, then the corners.
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]
    places = np.array(
        [(x * far, y * far) for far in (6, 13, 24, 38, 55, 75) for x, y in directions]
    )
    for point, pixel, name in zip(points, pixels, names, strict=True):
        note = axes.annotate(
            _label(name),
            point,
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#9A9A9A", "linewidth": 0.6, "shrinkB": 4},
        )
        extent = Text.get_window_extent(note)  # Annotation's own would add the line
        size = np.array([extent.width, extent.height])
        corners = pixel + per_point * places - size * (1 - np.sign(places)) / 2
        boxes = np.hstack([corners, corners + size])
        outside = size.prod() - _areas(boxes, inside)[:, 0]
        covered = _areas(boxes, np.array(taken)).sum(axis=1) + outside
        best = int(np.argmin(np.round(covered, 3)))  # the nearest, not the best by rounding
        taken.append(boxes[best] + per_point * np.array([-1, -1, 1, 1]))
        side = np.sign(places[best])
        note.set(
            position=tuple(places[best]),
            horizontalalignment=("center", "left", "right")[int(side[0])],
            verticalalignment=("center", "bottom", "top")[int(side[1])],
        )
        note.arrow_patch.set_visible(bool(np.abs(places[best]).max() > 13))


def plot_ranking(
    path: PathLike,
    names: Sequence[str],
    scores: Mapping[str, ArrayLike] | ArrayLike,
    achieved: ArrayLike | None = None,
    *,
    baseline: float | None = None,
) -> pathlib.Path:
    """Draws what scores say of the teachers, one panel a score.

    Args:
        path: PNG file to write.
        names: The teachers.
        scores: A score of each teacher, higher is better; or several scores by name. A
            teacher whose score is not finite is left out of that panel.
        achieved: Accuracy in [0, 1] of the student of each teacher. With it, panels set
            accuracy against score; without it they are bars, best teacher first.
        baseline: Accuracy in [0, 1] of a student without a teacher, drawn as a line; read
            with `achieved` only.

    Returns:
        The path written.

    Raises:
        InputError: If there is no teacher, or not one score and accuracy for each.
    """
    panels = dict(scores) if isinstance(scores, Mapping) else {"score": scores}
    checks.require(len(names) > 0, "`names` is empty: name at least one teacher.")
    checks.require(len(panels) > 0, "`scores` is empty: give at least one score.")
    values = {name: np.asarray(score, np.float64) for name, score in panels.items()}
    for name, score in values.items():
        checks.shape(f"scores[{name!r}]", score, (len(names),))
    if achieved is not None:
        checks.shape("achieved", achieved, (len(names),))

    columns = min(len(values), 3)
    rows = -(-len(values) // columns)
    crowd = 0.08 * max(0, len(names) - 10)
    height = 3.9 + crowd if achieved is not None else 1.1 + 0.26 * len(names)
    width = 4.6 + crowd if achieved is not None else 4.6
    figure = _figure(max(5.6, min(width, _LARGEST) * columns), min(height, _LARGEST) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(values) :]:
        axes.remove()
    for axes, (title, score) in zip(grid, values.items(), strict=False):
        if achieved is None:
            _ranking_bars(axes, names, score)
        else:
            axes.scatter(score, 100 * np.asarray(achieved), s=34, color=_COLOURS[0], zorder=3)
            if baseline is not None:
                axes.axhline(100 * baseline, color=_COLOURS[1], linestyle="--", linewidth=1.2)
                axes.annotate(
                    "student alone",
                    (0.01, 100 * baseline),
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    color=_COLOURS[1],
                    fontsize=8,
                )
            axes.set_ylabel("accuracy of the student [%]", fontsize=9)
            axes.margins(0.14)
            _clean(axes, "both")
        axes.set_xlabel(f"{_literal(title)} (higher is better)", fontsize=9)
    if achieved is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, score in zip(grid, values.values(), strict=False):
            points = np.stack([score, 100 * np.asarray(achieved)], axis=1)
            shown = np.isfinite(points).all(axis=1)
            _write_names(axes, points[shown], list(itertools.compress(names, shown)))
    return _save(figure, path)


def _ranking_bars(axes: Any, names: Sequence[str], score: np.ndarray) -> None:
    shown = np.flatnonzero(np.isfinite(score))
    order = shown[np.argsort(-score[shown], kind="stable")]
    # Scores may all be negative (a cost with its sign turned): a stem from the axis'
    # left edge keeps "longer is better" true, which bars from zero would turn round.
    low = float(score[order].min()) if order.size else 0.0
    high = float(score[order].max()) if order.size else 1.0
    start = min(0.0, low) if low >= 0 else low - 0.08 * max(high - low, 1e-12)
    rows = np.arange(order.size)
    colours = [_COLOURS[0] if row == 0 else "#9CC3DD" for row in rows]
    axes.barh(rows, score[order] - start, left=start, color=colours, height=0.66)
    axes.set_xlim(left=start)
    axes.set_yticks(rows, [_label(names[row]) for row in order])
    axes.set_ylim(max(order.size, 1) - 0.4, -0.6)
    _clean(axes, "x")
    axes.tick_params(axis="y", length=0)


def plot_cost(
    path: PathLike,
    cost: ArrayLike,
    teacher_classes: Sequence[str],
    student_classes: Sequence[str],
) -> pathlib.Path:
    """Draws the cost of carrying each teacher label (row) to each student label (column).

    Args:
        path: PNG file to write.
        cost: Costs [teacher classes, student classes]; NaN is left blank.
        teacher_classes: Names of the rows.
        student_classes: Names of the columns.

    Returns:
        The path written.

    Raises:
        InputError: If the names do not fit the matrix.
    """
    return _heat_map(path, "cost", cost, teacher_classes, student_classes, "viridis_r")


def plot_plan(
    path: PathLike,
    plan: ArrayLike,
    teacher_classes: Sequence[str],
    student_classes: Sequence[str],
) -> pathlib.Path:
    """Draws the mass that moves from each teacher label to each student label, as `plot_cost`."""
    return _heat_map(path, "plan", plan, teacher_classes, student_classes, "Blues")


def _heat_map(
    path: PathLike,
    kind: str,
    matrix: Any,
    teacher_classes: Sequence[str],
    student_classes: Sequence[str],
    colours: str,
) -> pathlib.Path:
    values = np.asarray(matrix, np.float64)
    checks.shape(kind, values, (len(teacher_classes), len(student_classes)))
    checks.require(values.size > 0, f"`{kind}` is empty: it needs at least one class a side.")
    rows, columns = values.shape
    title, low = {"cost": ("cost of carrying", None), "plan": ("mass carried", 0.0)}[kind]
    few = max(rows, columns) <= 12
    width = min((0.46 if few else _COLUMN) * columns, _LARGEST)
    height = min((0.36 if few else _ROW) * rows, _LARGEST)
    figure = _figure(max(width, 1.6) + 3.2, max(height, 1.6) + 1.9)
    axes = figure.subplots()
    image = axes.imshow(values, cmap=colours, vmin=low, aspect="auto", interpolation="nearest")
    size = 9 if few else 7
    # Beyond the largest picture only every so many names fit.
    row_step, column_step = (
        math.ceil(count * 0.13 / max(length, 1.6))
        for count, length in ((rows, height), (columns, width))
    )
    # An average character is 0.6 of the font size wide.
    longest = max(len(_label(name)) for name in student_classes) * 0.6 * size / 72
    slanted = longest > 0.9 * max(width, 1.6) / columns
    axes.set_yticks(
        range(0, rows, row_step), map(_label, teacher_classes[::row_step]), fontsize=size
    )
    axes.set_xticks(
        range(0, columns, column_step),
        map(_label, student_classes[::column_step]),
        fontsize=size,
        rotation=50 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor",
    )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("teacher's labels", fontsize=9, loc="top")
    axes.set_xlabel("student's labels", fontsize=9, loc="left")
    if few:
        for row, column in np.argwhere(np.isfinite(values)):
            if kind == "plan" and values[row, column] < 0.005:
                continue  # a plan is nearly empty: zeros would hide it
            red, green, blue, _ = image.cmap(image.norm(values[row, column]))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axes.text(
                column,
                row,
                f"{values[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#222222",
            )
    bar = figure.colorbar(
        image, ax=axes, aspect=20, pad=0.02, shrink=min(1.0, 4 / height), anchor=(0, 1)
    )
    bar.outline.set_visible(False)
    bar.set_label(title, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return _save(figure, path)


def plot_curves(
    path: PathLike,
    curves: Mapping[str, Sequence[Point]],
    ylabel: str,
    *,
    xlabel: str = "step",
) -> pathlib.Path:
    """Draws how values change over steps, one line a name.

    Args:
        path: PNG file to write.
        curves: For each name its points (step, value); a value may be the sequence of the
            values of several seeds: then the line is their mean and a band reaches from the
            lowest to the highest.
        ylabel: What the values are, with unit.
        xlabel: What the steps are, with unit.

    Returns:
        The path written.

    Raises:
        InputError: If there is no curve, or one without points.
    """
    checks.require(len(curves) > 0, "`curves` is empty: give at least one.")
    for name, points in curves.items():
        checks.require(len(points) > 0, f"`curves[{name!r}]` has no points; leave it out.")
    figure = _figure(6.6 if len(curves) <= 6 else 8.6, 4.0)
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        steps = [step for step, _ in points]
        seeds = [np.atleast_1d(np.asarray(value, np.float64)) for _, value in points]
        style = _STYLES[number // len(_COLOURS) % len(_STYLES)]
        colour = _COLOURS[number % len(_COLOURS)]
        mean = [values.mean() for values in seeds]
        marker = "o" if len(points) <= 25 else None
        axes.plot(
            steps, mean, style, marker=marker, ms=3.5, lw=1.7, color=colour, label=_label(name)
        )
        if max(map(len, seeds)) > 1:
            low, high = [v.min() for v in seeds], [v.max() for v in seeds]
            axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.set_ylabel(_literal(ylabel), fontsize=9)
    axes.set_xlabel(_literal(xlabel), fontsize=9)
    _clean(axes, "y")
    if len(curves) <= 6:
        axes.legend(frameon=False, fontsize=8)
    else:
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return _save(figure, path)
