"""Public benchmarks before and after training, with EleutherAI's lm-eval harness."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from rwml_callbacks.analysis import Analysis, Measurement
from rwml_lightning.data.datamodule import rollout_data
from rwml_lightning.modules.base import PolicyModule

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

log = logging.getLogger(__name__)

PAPER_TASKS = (
    "mmlu_redux_generative",
    "ifeval",
    "minerva_math500",
    "gsm8k",
    "gpqa_diamond_cot_zeroshot",
    "livecodebench",
)
"""Harness names of the paper's six benchmarks (arXiv 2602.05842).

The harness has no LiveCodeBench; the callback skips it with a warning.
"""


class Forgetting(Analysis):
    """Measure the scores of the policy on lm-eval tasks before and after training.

    The harness runs the trainer's own module, so there is no second copy of the weights. A task that the harness lacks,
    or with data that cannot be loaded, is skipped with a warning. Metrics: ``forgetting/<task>/<metric>``.

    Args:
        tasks: Names of lm-eval tasks or groups (default: the paper's six benchmarks).
        limit: Maximum number of samples per task, taken from its start; ``None`` takes all. Each member of a group
            counts as a task.
        batch_size: Number of sequences per forward pass.
        apply_chat_template: Whether to send prompts as chat messages; ``None`` does so if the tokenizer has a template.
        include_path: Folder with your own task files (YAML).
        every_n_steps: See :class:`Analysis`. Such benchmarks take long.

    Raises:
        ModuleNotFoundError: The harness is not installed. The message says how to install it.
        ValueError: An argument is out of its range, or ``include_path`` is not a folder.

    Example::

        >>> from rwml_callbacks import Forgetting
        >>> trainer = L.Trainer(callbacks=[Forgetting(tasks=["ifeval"], limit=50)])
    """

    name: ClassVar[str] = "forgetting"

    def __init__(
        self,
        tasks: Sequence[str] = PAPER_TASKS,
        limit: int | None = 100,
        batch_size: int = 8,
        apply_chat_template: bool | None = None,
        include_path: str | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(every_n_steps)
        if find_spec("lm_eval") is None:
            raise ModuleNotFoundError(
                "Forgetting needs EleutherAI's lm-eval, which is not installed: pip install 'rwml-lightning[forgetting]'"
            )
        for name, value in (("limit", limit), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"Forgetting.{name} is {value}; it must be at least 1")
        if include_path is not None and not Path(include_path).is_dir():
            raise ValueError(f"Forgetting.include_path names {include_path}, which is not a folder")
        self.tasks = tuple(tasks)
        self.limit = limit
        self.batch_size = batch_size
        self.apply_chat_template = apply_chat_template
        self.include_path = include_path
        self._reachable: list[str] | None = None

    @override
    def measure(self, trainer: L.Trainer, module: PolicyModule) -> Measurement:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        manager = task_manager(self.include_path)
        if self._reachable is None:
            obstacles = {task: obstacle(manager, task) for task in self.tasks}
            self._reachable = [task for task, reason in obstacles.items() if reason is None]
            for task, reason in obstacles.items():
                if reason is not None and trainer.is_global_zero:
                    log.warning("forgetting: task %s is skipped: %s", task, reason)
        if not self._reachable:
            return Measurement({}, {})
        chat = self.apply_chat_template
        training = [part for part in module.policy.modules() if part.training]
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        try:
            with isolate_rng():
                found = simple_evaluate(
                    model=HFLM(
                        module.policy,
                        tokenizer=module.tokenizer,
                        batch_size=self.batch_size,
                        chat_template_args=rollout_data(trainer).chat_template_kwargs,
                    ),
                    tasks=list(self._reachable),
                    task_manager=manager,
                    limit=self.limit,
                    apply_chat_template=module.tokenizer.chat_template is not None if chat is None else chat,
                    log_samples=False,
                )
        finally:
            for part in training:
                part.training = True
        if found is None:  # the harness returns results to the first process only
            return Measurement({}, {})
        scores: dict[str, dict[str, Any]] = found["results"]
        members = {task for group in found["group_subtasks"].values() for task in group}
        metrics = {
            f"forgetting/{name}": value
            for task in scores
            if task in self._reachable
            or task not in members  # a group has a score for its members, a tag has none
            for name, value in _values(task, scores[task])
        }
        return Measurement(metrics, scores)


@cache
def task_manager(include_path: str | None) -> TaskManager:
    """Build the harness's index of tasks once; it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def obstacle(manager: TaskManager, task: str) -> str | None:
    """Return in one line why a task cannot be run here, or ``None`` if it can."""
    from datasets.exceptions import DatasetsError

    if task not in manager.task_index:
        return "lm-eval has no task with this name"
    try:
        manager.load([task])
    except (OSError, DatasetsError, ImportError) as error:
        return f"its data or packages are not available ({str(error).strip().partition(chr(10))[0]})"
    return None


def _values(task: str, scores: dict[str, Any]) -> list[tuple[str, float]]:
    """Select the metrics of one task. The harness names them ``metric,filter`` and mixes them with errors and labels."""
    return [
        (f"{task}/{key.removesuffix(',none').replace(',', '_')}", float(value))
        for key, value in scores.items()
        if isinstance(value, int | float) and "," in key and "_stderr" not in key
    ]
