"""Does a teacher chosen by its transport cost help a student with few labels?

    python -m experiments.faculty_distillation

The main job from start to end: builds a faculty on parts of the label space of a data set
(kept for the next run), takes a few-shot task on images that no teacher has seen, scores every
teacher in one pass, and trains students of one budget: alone, from a random teacher, from the
chosen one, and (with --every_teacher) from each of the faculty, so that the ranking can be held
against what each teacher was really worth. Writes results.json, report.md and pictures.

About a minute and a half on two cores, a third of that with --seeds=1 once the faculty is kept.
Expect a test accuracy of 0.89 ± 0.02 alone, 0.92 ± 0.01 from a random teacher (the merit of the
student's own beliefs, for the teacher is not trusted), and 0.96 from the chosen teacher, who knows
all ten digits, as from the three leading ones together.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from experiments import _cohort, _goals, _run, _student, _task, build_faculty
from fdjax import checks, data, objectives, reports

ALONE, MIXTURE = "(alone)", "(mixture)"


@dataclasses.dataclass(frozen=True)
class Config(_goals.ObjectiveConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/faculty_distillation", "Folder of results and report.")
    root: str | None = _run.flag(
        None, "Folder of a faculty; one is built on the data set beside the workdir if not given."
    )
    num_teachers: int = _run.flag(12, "Teachers to build where no --root is given.", low=1)
    score: _task.Shown = _run.flag("transport", "Score by which the teacher is chosen.")
    mixture: int = _run.flag(
        3, "Leading teachers that also teach together where the objective can; 1 for none.", low=1
    )
    seeds: int = _run.flag(3, "Students of each kind, from different seeds.", low=1)
    every_teacher: bool = _run.flag(True, "Whether a student is taught by every teacher.")


def faculty_root(config: Config, record: _run.Run) -> str:
    """The given faculty, or one built on the data set of the task."""
    if config.root is not None:
        return config.root
    stem = Path(config.dataset).stem + (f"-{config.image_size}px" if config.image_size else "")
    built = build_faculty.Config(
        workdir=str(record.workdir / "faculty"),
        root=str(record.workdir.parent / f"faculty-{stem}-{config.num_teachers}-{config.seed}"),
        datasets=(config.dataset,),
        data_dir=config.data_dir,
        image_size=config.image_size,
        num_teachers=config.num_teachers,
        seed=config.seed,
    )
    build_faculty.run(built)
    return built.root


def run(config: Config) -> dict[str, Any]:
    """The whole job; returns what results.json holds."""
    record = _run.Run(config)
    _student.check(config)
    choice = _goals.chosen(config)
    _goals.check_copies(choice, config)
    checks.require(
        choice.name != _goals.FINE_TUNE,
        f"--objective={_goals.FINE_TUNE} teaches no student; see distil_student.",
    )
    checks.require(
        choice.goal.hears != "nobody",
        f"the objective `{choice.name}` hears no teacher; choose one that does.",
    )
    task = _task.target(config)
    with record.stage("build"):
        root = faculty_root(config, record)
    with record.stage("observe"):
        seen = _task.observe(root, task)
    with record.stage("score"):
        functions = _task.score_functions(cost=config.cost)
        values = _task.score(seen, task, {name: functions[name] for name in get_args(_task.Shown)})
    ranking = _task.rank(values[config.score], seen.names)
    chosen = ranking[0]
    random_teacher = seen.names[np.random.default_rng([config.seed, 2]).integers(len(seen.names))]
    taught = seen.names if config.every_teacher else tuple(dict.fromkeys([chosen, random_teacher]))
    mixture = {}
    if config.mixture > 1 and len(seen.names) > 1 and choice.goal.hears in ("summed", "together"):
        mixture = _goals.mixture(values[config.score], seen.names, config.mixture)
    with record.stage("distil"):
        achieved = distil(config, choice, task, seen, taught, mixture)
    results = {
        "chosen": chosen,
        "random_teacher": random_teacher,
        "ranking": [
            {
                "teacher": name,
                "scores": {key: value[seen.names.index(name)] for key, value in values.items()},
            }
            for name in ranking
        ],
        "accuracy": {
            "alone": achieved[ALONE],
            "random_teacher": achieved[random_teacher],
            "chosen_teacher": achieved[chosen],
        }
        | ({"mixture": achieved[MIXTURE]} if mixture else {}),
        "mixture": mixture,
        "accuracy_by_teacher": {name: achieved[name] for name in taught},
        "task": {
            "dataset": config.dataset,
            "classes": task.class_names,
            "labelled": int((task.train.labels >= 0).sum()),
            "unlabelled": int((task.train.labels < 0).sum()),
            "test": len(task.test.labels),
        },
    }
    results = record.finish(results)
    report(config, record, task, seen, results)
    return results


ALONE = "(alone)"


def distil(
    config: Config,
    choice: _goals.Choice,
    task: data.Task,
    seen: _task.Observed,
    names: Sequence[str],
    mixture: Mapping[str, float],
) -> dict[str, list[float]]:
    """Test accuracy over seeds of students alone, from teachers, and from several together."""
    school = _student.School(
        task, config.student, _student.budget(config), objectives.cross_entropy()
    )
    # The student alone is that of a teacher without weight: same program, same budget.
    silent = choice._replace(settings=choice.settings | {"weight": 0.0})
    kinds: dict[str, tuple[_goals.Choice, Mapping[str, float]]]
    kinds = {ALONE: (silent, {names[0]: 1.0})} | {name: (choice, {name: 1.0}) for name in names}
    seeds = range(config.seed, config.seed + config.seeds)

    def accuracies(group: Mapping[str, tuple[_goals.Choice, Mapping[str, float]]]) -> list[float]:
        pupils = [_cohort.Pupil(*kind, seed) for kind in group.values() for seed in seeds]
        return _cohort.accuracies(school, seen, config.cost, pupils, "students")

    achieved = accuracies(kinds)
    if mixture:
        kinds[MIXTURE] = (choice, mixture)
        achieved += accuracies({MIXTURE: kinds[MIXTURE]})
    rows = np.reshape(achieved, (len(kinds), config.seeds)).tolist()
    return dict(zip(kinds, rows, strict=True))


def report(
    config: Config,
    record: _run.Run,
    task: data.Task,
    seen: _task.Observed,
    results: dict[str, Any],
) -> None:
    """Prints the tables and writes report.md with its pictures."""
    achieved = results["accuracy_by_teacher"]
    ranking = [
        {"rank": place + 1, "teacher": row["teacher"]}
        | row["scores"]
        | (
            {"student": _student.mean_and_spread(achieved[row["teacher"]])}
            if row["teacher"] in achieved
            else {}
        )
        for place, row in enumerate(results["ranking"])
    ]
    accuracy = [
        {"student": kind, "teacher": teacher, "test accuracy": _student.mean_and_spread(values)}
        for (kind, values), teacher in zip(
            results["accuracy"].items(),
            ("none", results["random_teacher"], results["chosen"], ", ".join(results["mixture"])),
            strict=False,
        )
    ]
    reports.print_table(ranking, f"Teachers by {config.score} (higher is better)")
    reports.print_table(
        accuracy, f"Students on {len(task.class_names)} classes of {config.dataset}"
    )
    names = [name for name in seen.names if name in achieved]
    by_name = {row["teacher"]: row["scores"] for row in results["ranking"]}
    workdir, chosen = record.workdir, results["chosen"]
    classes = seen.class_names[seen.names.index(chosen)]
    cost = np.asarray(_task.cost(seen, task, chosen, config.cost))[: len(classes)]
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.faculty_distillation', config)}`",
        f"Task: {', '.join(task.class_names)} of `{config.dataset}`, {config.shots} labelled "
        f"images a class, {results['task']['unlabelled']} unlabelled, {results['task']['test']} "
        f"test images. Mean ± standard deviation over {config.seeds} "
        f"seed{'s' if config.seeds > 1 else ''} of the student.",
        reports.table(accuracy),
        "## Ranking",
        "All scores are made from the labelled training images alone; higher is better.",
        reports.table(ranking),
        reports.plot_ranking(
            workdir / "ranking.png",
            names,
            {
                key: np.array([by_name[name][key] for name in names])
                for key in get_args(_task.Shown)
            },
            np.array([np.mean(achieved[name]) for name in names]),
            baseline=float(np.mean(results["accuracy"]["alone"])),
        ),
        f"## What the labels of {chosen} cost",
        reports.plot_cost(workdir / "cost.png", cost, classes, task.class_names),
        "## Seconds",
        reports.table([{"stage": k, "seconds": v} for k, v in results["seconds"].items()]),
    ]
    reports.write(workdir, "Faculty distillation", sections)
    print(f"chosen: {chosen}\nreport: {workdir / 'report.md'}")


if __name__ == "__main__":
    _run.main(run, Config)
