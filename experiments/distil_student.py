"""How good does one student become, taught by one teacher or several?

    python -m experiments.distil_student --root=runs/faculty --teacher=best
    python -m experiments.distil_student --objective=reference --teacher=mixture

Trains one student on a few-shot task by cross-entropy on the labelled images and the chosen
objective on all images, from the best teacher by the transport score, from one named, or from
the leading teachers together. It saves checkpoints; a run that was killed goes on with --resume
to the same result bit for bit. Nine seconds for the defaults on two cores; expect a test accuracy
of 0.95.
"""

import dataclasses
from pathlib import Path
from typing import Any

from experiments import _goals, _run, _student, _task
from fdjax import checks, objectives, reports


@dataclasses.dataclass(frozen=True)
class Config(_student.BudgetConfig):
    """Flags of the experiment."""

    workdir: str = _run.flag("runs/distil_student", "Folder of results and checkpoints.")
    root: str = _run.flag("runs/faculty", "Folder of the faculty.")
    teacher: str = _run.flag(
        "best",
        "Name of a teacher, or best: the first by transport score, or mixture: the leading ones.",
    )
    mixture: int = _run.flag(3, "Teachers of --teacher=mixture.", low=2)
    objective: str = _run.flag(
        "transport",
        f"What is minimised beside cross-entropy: {', '.join(_goals.GOALS)}; with settings as "
        "name:setting=value:setting=value.",
    )
    weight: float | None = _run.flag(
        None, "Weight of that term; the objective's own if not given.", low=0.0
    )
    temperature: float | None = _run.flag(
        None, "Softening of the predictions; the objective's own if not given.", low=1e-3
    )
    epsilon: float | None = _run.flag(
        None,
        "Entropic regularisation, in nats of the cost; the objective's own if not given.",
        low=1e-3,
    )
    save_every: int = _run.flag(100, "Steps between checkpoints.", low=1)
    resume: bool = _run.flag(False, "Whether to go on from the workdir's latest checkpoint.")


def chosen(config: Config, seen: _task.Observed, task: Any) -> dict[str, float]:
    """The teachers to be heard, each with its share."""
    if config.teacher not in ("best", "mixture"):
        return {config.teacher: 1.0}
    functions = {"transport": _task.score_functions(cost=config.cost)["transport"]}
    values = _task.score(seen, task, functions)["transport"]
    return _goals.mixture(values, seen.names, config.mixture if config.teacher == "mixture" else 1)


def run(config: Config) -> dict[str, Any]:
    """Trains the student; returns what results.json holds."""
    record = _run.Run(config)
    _student.check(config)
    choice = _goals.parse(
        config.objective,
        weight=config.weight,
        temperature=config.temperature,
        epsilon=config.epsilon,
    )
    _goals.check_teachers(choice, config.mixture if config.teacher == "mixture" else 1)
    alone = choice.goal.hears == "nobody"
    checks.require(
        not alone or config.teacher == "best",
        f"the objective `{choice.name}` hears no teacher; leave out --teacher={config.teacher}.",
    )
    task = _task.target(config)
    with record.stage("observe"):
        seen = _task.observe(config.root, task)
    checks.choice("--teacher", config.teacher, ("best", "mixture", *seen.names))
    with record.stage("score"):
        shares = {} if alone else chosen(config, seen, task)
    school = _student.School(
        task, config.student, _student.budget(config), objectives.cross_entropy()
    )
    with record.stage("distil"):
        lesson = _goals.Lesson(school, seen, config.cost, shares, config.seed)
        objective, teacher = _goals.make(choice, lesson)
        state, history = school.minimising(objective).teach_one(
            config.seed,
            teacher,
            objective,
            folder=record.workdir,
            resume=config.resume,
            save_every=config.save_every,
        )
    accuracy = school.accuracy(state.variables)
    name = ", ".join(shares) or "none"
    points = [(entry["step"], entry["loss"]) for entry in history]
    sections: list[str | Path] = [
        f"`{_run.command_line('experiments.distil_student', config)}`",
        f"Teacher {name}; test accuracy {accuracy:.3f} on {len(task.test.labels)} images.",
        reports.plot_curves(record.workdir / "loss.png", {config.objective: points}, "loss (nats)"),
    ]
    reports.write(record.workdir, "One student", sections)
    print(f"teacher: {name}\ntest accuracy: {accuracy:.3f}")
    return record.finish(
        {
            "teacher": name,
            "shares": shares,
            "accuracy": accuracy,
            "history": history,
            "classes": task.class_names,
        }
    )


if __name__ == "__main__":
    _run.main(run, Config)
