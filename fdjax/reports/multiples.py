"""Small pictures side by side: what each score foretold, and what came to be."""

import pathlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from fdjax import checks
from fdjax.reports.files import PathLike
from fdjax.reports.pictures import _COLOURS, _clean, _figure, _label, _literal, _save


def plot_foretold(
    path: PathLike,
    scores: Mapping[str, Mapping[str, ArrayLike]],
    truth: Mapping[str, ArrayLike],
    *,
    ylabel: str,
) -> pathlib.Path:
    """Draws what teachers turned out to be worth against their places by each score.

    One small panel a score, all of one scale; a point is a teacher of a task, and the tasks have
    their colours. A good score falls from left to right. Places and not values, for the values
    of one score on different tasks need not be comparable.

    Args:
        path: PNG file to write.
        scores: By name, a score of each teacher of each task; higher is better, NaN is last.
        truth: What each teacher of each task was worth.
        ylabel: What that is, with unit.

    Returns:
        The path written.

    Raises:
        InputError: If there is no score or not one score for each teacher of each task.
    """
    checks.require(len(scores) > 0, "`scores` is empty: give at least one score.")
    columns = min(len(scores), 5)
    rows = -(-len(scores) // columns)
    figure = _figure(max(2.1 * columns, 5.0), 1.9 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in grid[len(scores) :]:
        axes.remove()
    for axes, (title, by_task) in zip(grid, scores.items(), strict=False):
        for number, (task, worth) in enumerate(truth.items()):
            score = np.asarray(by_task[task], np.float64)
            checks.shape(f"scores[{title!r}][{task!r}]", score, np.shape(worth))
            place = np.empty(len(score))
            place[np.argsort(np.where(np.isnan(score), np.inf, -score), kind="stable")] = (
                np.arange(len(score)) + 1
            )
            colour = _COLOURS[number % len(_COLOURS)]
            axes.scatter(place, worth, s=5, color=colour, alpha=0.7, linewidth=0, label=task)
        axes.set_title(_label(title), fontsize=9)
        _clean(axes, "both")
    for axes in grid[: len(scores)][-columns:]:
        axes.tick_params(labelbottom=True)  # also where the row below has no panel
    figure.supxlabel("place by the score, 1 the highest", fontsize=9)
    figure.supylabel(_literal(ylabel), fontsize=9)
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(
        handles,
        list(map(_label, names)),
        frameon=False,
        fontsize=8,
        markerscale=2,
        loc="outside upper center",
        ncols=max(1, columns - 1),
    )
    return _save(figure, path)
