"""``evaluate``: compare several models on the same held-out transitions, with the same seeds, in one table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import Logger

from rwml_lightning import parallel
from rwml_lightning.commands.configured import Configured
from rwml_lightning.commands.model_evaluator import ModelEvaluator
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.evaluation import ModelResult, paired_difference, render_by_kind, render_comparison
from rwml_lightning.files import write_json
from rwml_lightning.loggers import log_comparison, name_run
from rwml_lightning.models import resolve_model
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.schema import Transition
from rwml_lightning.terminal import Terminal


def evaluate(configured: Configured, models: list[str], output: str | None = None) -> None:
    """Compare several models on the same held-out transitions.

    Args:
        configured: Held-out transitions, generator and reward. Models that are not checkpoints get the dtype of its model.
        models: Checkpoints (.ckpt), folders, hub ids or package: names; the first is the baseline of the comparison.
        output: Folder of the results; default: runs/evaluate-<run.name>.
    """
    config = yaml.safe_load(configured.config)
    settings = {key: config[key] for key in ("data", "seed_everything")}
    folder = Path(output or Path(configured.run.root) / f"evaluate-{configured.run.name}")
    for logger in configured.loggers:
        name_run(logger, folder)
    compare(
        configured.make_trainer(), configured.model, configured.data, models, folder, settings, configured.loggers
    )  # fmt: skip


def compare(
    trainer: L.Trainer,
    template: PolicyModule,
    data: RolloutDataModule,
    models: Sequence[str],
    folder: Path,
    settings: Mapping[str, Any],
    loggers: Sequence[Logger] = (),
) -> None:
    """Evaluate models, save each result immediately, and print one table.

    Args:
        trainer: See :class:`ModelEvaluator`.
        template: Module with the dtype for models that are not checkpoints.
        data: Generator, reward and held-out transitions, which are collected if their file does not exist.
        models: Checkpoints (``.ckpt``), folders, hub ids or ``package:`` names; the first is the baseline of the comparison.
        folder: Folder of the results: one file per model and ``comparison.json``. Existing results of the same model and
            settings are reused.
        settings: Plain values on which the results depend, in addition to models and transitions.
        loggers: Loggers that receive the results at the end.

    Raises:
        ValueError: There are no held-out transitions; or some models could not be evaluated, which is raised after all
            other models are done.
    """
    held_out = held_out_transitions(template, data)
    settings = {**settings, "dtype": template.dtype_name, "held_out": repr(held_out)}
    names = list(dict.fromkeys(models))
    console = Terminal(stderr=True, soft_wrap=True, quiet=not trainer.is_global_zero)
    results: dict[str, ModelResult] = {}
    failed: list[str] = []
    evaluator = ModelEvaluator(trainer, data, template.dtype_name)
    try:
        for number, name in enumerate(names, start=1):
            console.print(f"model {number} of {len(names)}: {name}")
            try:
                file = folder / result_file(name, settings)
                if file.exists():
                    console.print(f"already evaluated: {file}")
                    results[name] = ModelResult.from_json(json.loads(file.read_text()))
                else:
                    results[name] = evaluator.evaluate(name)
                    if trainer.is_global_zero:
                        write_json(file, asdict(results[name]))
            except ValueError as error:
                failed.append(name)
                console.print(f"skipped: {name}: {error}")
    finally:
        evaluator.close()
    if results and trainer.is_global_zero:
        report(list(results.values()), folder)
        for logger in loggers:
            log_comparison(logger, {name: result.results[0] for name, result in results.items()})
            logger.finalize("success")
    if failed:
        raise ValueError(f"skipped models, for the reasons above: {', '.join(failed)}")


def held_out_transitions(template: PolicyModule, data: RolloutDataModule) -> list[Transition]:
    """Return all held-out transitions of the file, which is collected if it does not exist.

    Raises:
        ValueError: The file holds no held-out transitions.
    """
    predictions = data.need_predictions()
    if not predictions.path.exists():
        generator = copy(data.generator)  # it is not started yet, so the copy shares nothing with it

        def make() -> str:
            predictions.collect(
                data.environment,
                data.seed,
                lambda: PolicyClient.of(template, generator, data.chat_template_kwargs),
            )
            return str(predictions.path)

        parallel.agree("collected", make)
        generator.close()
    transitions = read_transitions(predictions.path, predictions.on_broken)
    held_out = [transition for transition in transitions if transition.split == "validation"]
    if not held_out:
        raise ValueError(f"{predictions.path} holds no validation transitions")
    return held_out


def result_file(name: str, settings: Mapping[str, Any]) -> str:
    """Return the file name of a model's result. The name changes with the model's files and with the settings.

    Raises:
        ValueError: The model does not exist.
    """
    path = Path(name)
    if not name.endswith(".ckpt"):
        files = sorted(file for file in resolve_model(name).iterdir() if file.is_file())
    elif path.is_file():
        files = [path]
    else:
        raise ValueError("no such checkpoint")
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    text = json.dumps([name, states, settings], sort_keys=True, default=str)
    readable = re.sub(r"\W+", "-", name).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def report(models: Sequence[ModelResult], folder: Path) -> None:
    """Write ``comparison.json`` and print the tables. The first model is the baseline."""
    base, *others = models
    differences = {other.model: paired_difference(other.measured, base.measured) for other in others}
    write_json(
        folder / "comparison.json",
        {
            "results": {model.model: [asdict(row) for row in model.results] for model in models},
            "base": base.model,
            "differences": {name: asdict(difference) for name, difference in differences.items()},
            "floors": [asdict(floor) for floor in base.floors],
        },
    )
    console = Terminal()
    results = {model.model: model.results[0] for model in models}
    console.print(render_comparison("Held-out transitions", results, differences, base.floors))
    columns = {model.model: model.results for model in models}
    console.print(render_by_kind("Share under tau_d by kind of step", columns))
    console.print(f"Results: {folder}", soft_wrap=True)


def repeat_option(option: str, arguments: Sequence[str]) -> list[str]:
    """Rewrite ``--models A B`` as jsonargparse takes a list: ``--models+=A --models+=B``."""
    spread: list[str] = []
    within = False
    for argument in arguments:
        if argument == option or argument.startswith("-"):
            within = argument == option
        if argument != option:
            spread.append(f"{option}+={argument}" if within else argument)
    return spread
