"""``evaluate``: several models on the same held-out transitions, with the same seeds, as one table."""

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

from rwml_lightning.commands.configured import Configured
from rwml_lightning.commands.model_evaluator import ModelEvaluator
from rwml_lightning.data.datamodule import RolloutDataModule
from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.evaluation import ModelResult, paired_difference, render_by_kind, render_comparison
from rwml_lightning.loggers import log_comparison, name_run
from rwml_lightning.models import resolve_model
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.prompts.policy import PolicyClient
from rwml_lightning.run import write_json
from rwml_lightning.schema import Transition
from rwml_lightning.terminal import Terminal


def evaluate(configured: Configured, models: list[str], output: str | None = None) -> None:
    """Compare several models on the same held-out transitions.

    Args:
        configured: Held-out transitions, generator and reward; its model has the dtype of models that are no checkpoints.
        models: Checkpoints (.ckpt), folders, hub ids or package: names; the others are compared with the first.
        output: Folder of the results; runs/evaluate-<run.name> when left out.
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
    """Evaluate models, save each result at once, and print one table.

    Args:
        trainer: See :class:`ModelEvaluator`.
        template: Has the dtype of models that are no checkpoints.
        data: Held-out transitions, collected if there are none, generator and reward.
        models: Checkpoints (``.ckpt``), folders, hub ids or ``package:`` names; the others are compared with the first.
        folder: Gets one file a model and ``comparison.json``; results of the same model and settings are read from it.
        settings: What results depend on beside models and transitions, as plain values.
        loggers: Get the results at the end.

    Raises:
        ValueError: No held-out transitions; or, after all that works is done, models that could not be evaluated.
    """
    held_out = held_out_transitions(template, data)
    settings = {**settings, "dtype": template.dtype_name, "held_out": repr(held_out)}
    names = list(dict.fromkeys(models))
    console = Terminal(stderr=True, soft_wrap=True, quiet=not trainer.is_global_zero)
    done: dict[str, ModelResult] = {}
    failed: list[str] = []
    evaluator = ModelEvaluator(trainer, data, template.dtype_name)
    try:
        for number, name in enumerate(names, start=1):
            console.print(f"model {number} of {len(names)}: {name}")
            try:
                file = folder / result_file(name, settings)
                if file.exists():
                    console.print(f"evaluated before: {file}")
                    done[name] = ModelResult.from_json(json.loads(file.read_text()))
                else:
                    done[name] = evaluator.evaluate(name)
                    if trainer.is_global_zero:
                        write_json(file, asdict(done[name]))
            except ValueError as error:
                failed.append(name)
                console.print(f"left out: {name}: {error}")
    finally:
        evaluator.close()
    if done and trainer.is_global_zero:
        report(list(done.values()), folder)
        for logger in loggers:
            log_comparison(logger, {name: result.results[0] for name, result in done.items()})
            logger.finalize("success")
    if failed:
        raise ValueError(f"left out, for the reasons given above: {', '.join(failed)}")


def held_out_transitions(template: PolicyModule, data: RolloutDataModule) -> list[Transition]:
    """All held-out transitions of the file, which is collected if it is not there.

    Raises:
        ValueError: There are none.
    """
    wanted = data.need_predictions()
    if not wanted.path.exists():
        generator = copy(data.generator)  # not started yet, so the copy shares nothing
        wanted.collect(
            data.environment,
            data.seed,
            lambda: PolicyClient.of(template, generator, data.chat_template_kwargs),
        )
        generator.close()
    found = [t for t in read_transitions(wanted.path, wanted.on_broken) if t.split == "validation"]
    if not found:
        raise ValueError(f"{wanted.path} holds no validation transitions")
    return found


def result_file(name: str, settings: Mapping[str, Any]) -> str:
    """File name of a model's result; another one when the model's files or the settings have changed.

    Raises:
        ValueError: There is no such model.
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


def report(found: Sequence[ModelResult], folder: Path) -> None:
    """Write ``comparison.json`` and print the tables; the others are compared with the first."""
    base, *others = found
    differences = {other.model: paired_difference(other.measured, base.measured) for other in others}
    write_json(
        folder / "comparison.json",
        {
            "results": {one.model: [asdict(row) for row in one.results] for one in found},
            "base": base.model,
            "differences": {name: asdict(difference) for name, difference in differences.items()},
            "floors": [asdict(floor) for floor in base.floors],
        },
    )
    console = Terminal()
    results = {one.model: one.results[0] for one in found}
    console.print(render_comparison("Held-out transitions", results, differences, base.floors))
    columns = {one.model: one.results for one in found}
    console.print(render_by_kind("Share under tau_d by kind of step", columns))
    console.print(f"Results: {folder}", soft_wrap=True)


def repeat_option(option: str, arguments: Sequence[str]) -> list[str]:
    """``--models A B`` as jsonargparse takes a list: ``--models+=A --models+=B``."""
    spread: list[str] = []
    within = False
    for argument in arguments:
        if argument == option or argument.startswith("-"):
            within = argument == option
        if argument != option:
            spread.append(f"{option}+={argument}" if within else argument)
    return spread
