"""Which teacher of a faculty suits a task?

    python -m experiments.score_faculty --root=runs/faculty --dataset=digits

Scores every teacher of a faculty (see experiments.build_faculty) for a few-shot task in one
vectorised pass a score, from the labelled images alone, and prints the teachers best first.
No student is trained: six seconds for a dozen teachers, most of them imports and compilation.
Expect the teachers of all ten digits first.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments import _run, _task
from fdjax import checks, reports, scores, selection, sharding


@dataclasses.dataclass(frozen=True)
class Config(_task.TaskConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/score_faculty", "Folder of results and report.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    unlabelled: int = _run.flag(
        0, "Unlabelled images to observe as well, for a later distillation; -1 for all.", low=-1
    )
    scores: tuple[str, ...] = _run.flag(
        get_args(_task.Shown),
        f"Scores to compute, of {', '.join(scores.SCORES)}; teachers are ranked by the first.",
    )
    level: Literal["example", "task"] = _run.flag(
        "example", "One transport problem an example, or one a teacher."
    )
    smoothing: float = _run.flag(
        0.0, "Share of each target label spread over all.", low=0.0, high=1.0
    )
    epsilon: float = _run.flag(
        0.05, "Entropic regularisation, as a share of the largest cost.", low=1e-4
    )
    teacher_batch: int | None = _run.flag(
        None, "Teachers scored at a time; all if not given. Bounds the memory.", low=1
    )
    shard: bool = _run.flag(False, "Whether teachers are spread over all devices.")


def run(config: Config) -> dict[str, Any]:
    """Scores and ranks the faculty; returns what results.json holds."""
    record = _run.Run(config)
    checks.require(bool(config.scores), "--scores is empty; name at least one.")
    for name in config.scores:
        checks.choice("--scores", name, scores.SCORES)
    task = _task.target(config)
    with record.stage("observe"):
        seen = _task.observe(config.root, task)
    functions = _task.score_functions(
        cost=config.cost,
        level=config.level,
        smoothing=config.smoothing,
        epsilon=config.epsilon,
    )
    mesh = sharding.device_mesh() if config.shard else None
    values = {}
    for name in config.scores:
        with record.stage(name):
            values[name] = np.asarray(
                selection.score_faculty(
                    functions[name],
                    seen.outputs,
                    task.train.labels,
                    task.num_classes,
                    batch_size=config.teacher_batch,
                    mesh=mesh,
                )
            )
    ranking = _task.rank(values[config.scores[0]], seen.names)
    rows = [
        {"rank": place + 1, "teacher": name, "labels": len(seen.class_names[position])}
        | {key: value[position] for key, value in values.items()}
        for place, name in enumerate(ranking)
        for position in (seen.names.index(name),)
    ]
    title = f"Teachers by {config.scores[0]} (higher is better)"
    reports.print_table(rows, title)
    picture = reports.plot_ranking(record.workdir / "ranking.png", seen.names, values)
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.score_faculty', config)}`",
        f"Task: {', '.join(task.class_names)} of `{config.dataset}`, {config.shots} labelled "
        "images a class.",
        reports.table(rows),
        picture,
    ]
    reports.write(record.workdir, title, sections)
    return record.finish({"chosen": ranking[0], "ranking": rows, "classes": task.class_names})


if __name__ == "__main__":
    _run.main(run, Config)
