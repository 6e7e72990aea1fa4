"""How good does one student become, taught by one teacher?

    python -m experiments.distil_student --root=runs/faculty --teacher=best

Trains one student on a few-shot task by cross-entropy on the labelled images and the chosen
objective on all images, from the best teacher by the transport score or from one named. It
saves checkpoints; a run that was killed goes on with --resume to the same result bit for bit.
Nine seconds for the defaults on two cores; expect a test accuracy of 0.95.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import _run, _student, _task
from fdjax import checks, objectives, reports


@dataclasses.dataclass(frozen=True)
class Config(_student.StudentConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/distil_student", "Folder of results and checkpoints.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    teacher: str = _run.flag("best", "Name of a teacher, or best: the first by transport score.")
    objective: str = _run.flag(
        "transport", f"What is minimised beside cross-entropy: {', '.join(objectives.OBJECTIVES)}."
    )
    save_every: int = _run.flag(100, "Steps between checkpoints.", low=1)
    resume: bool = _run.flag(False, "Whether to go on from the workdir's latest checkpoint.")


def run(config: Config) -> dict[str, Any]:
    """Trains the student; returns what results.json holds."""
    record = _run.Run(config)
    _student.check(config)
    checks.choice("--objective", config.objective, objectives.OBJECTIVES)
    task = _task.target(config)
    with record.stage("observe"):
        seen = _task.observe(config.root, task)
    name = config.teacher
    if name == "best":
        with record.stage("score"):
            functions = {"transport": _task.score_functions(cost=config.cost)["transport"]}
            values = _task.score(seen, task, functions)
        name = _task.rank(values["transport"], seen.names)[0]
    checks.choice("--teacher", name, ("best", *seen.names))
    term = objectives.create(
        config.objective,
        cost=_task.cost(seen, task, name, config.cost),
        temperature=config.temperature,
        epsilon=config.epsilon,
    )
    goal = objectives.weighted_sum((1.0, objectives.cross_entropy()), (config.weight, term))
    school = _student.School(task, config.student, _student.budget(config), goal)
    with record.stage("distil"):
        state, history = school.teach_one(
            config.seed,
            _task.teaching(seen, name),
            goal,
            folder=record.workdir,
            resume=config.resume,
            save_every=config.save_every,
        )
    accuracy = school.accuracy(state.variables)
    points = [(entry["step"], entry["loss"]) for entry in history]
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.distil_student', config)}`",
        f"Teacher {name}; test accuracy {accuracy:.3f} on {len(task.test.labels)} images.",
        reports.plot_curves(record.workdir / "loss.png", {config.objective: points}, "loss (nats)"),
    ]
    reports.write(record.workdir, "One student", sections)
    print(f"teacher: {name}\ntest accuracy: {accuracy:.3f}")
    return record.finish(
        {"teacher": name, "accuracy": accuracy, "history": history, "classes": task.class_names}
    )


if __name__ == "__main__":
    _run.main(run, Config)
