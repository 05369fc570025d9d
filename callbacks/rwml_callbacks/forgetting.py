"""What else the model could do before, and can still do after: public benchmarks through EleutherAI's harness."""

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
"""The paper's six benchmarks (arXiv 2602.05842) as the harness calls them; it has no LiveCodeBench, and says so."""


class Forgetting(Analysis):
    """Scores of lm-eval tasks on the policy under training, before and after.

    The trainer's own module answers, so there is no second copy of the weights. A task that the harness lacks, or whose
    data can't be reached, is named in the log and left out. Metrics: ``forgetting/<task>/<metric>``.

    Args:
        tasks: Names of the harness's tasks or groups (default: the paper's six).
        limit: Most samples a task, the first ones; ``None`` takes all. Each member of a group counts as a task.
        batch_size: Sequences a forward pass.
        apply_chat_template: Whether prompts are chat messages; ``None`` where the tokenizer has a template.
        include_path: Folder of task files of your own (YAML).
        every_n_steps: See :class:`Analysis`; such benchmarks take long.

    Raises:
        ModuleNotFoundError: The harness is not installed; says how to install it.

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
            raise ValueError(f"Forgetting.include_path names {include_path}, which is no folder")
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
                    log.warning("forgetting: the task %s is left out: %s", task, reason)
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
        if found is None:  # the harness answers the first process alone
            return Measurement({}, {})
        scores: dict[str, dict[str, Any]] = found["results"]
        members = {task for group in found["group_subtasks"].values() for task in group}
        metrics = {
            f"forgetting/{name}": value
            for task in scores
            if task in self._reachable
            or task not in members  # a group stands for its members, a tag does not
            for name, value in _values(task, scores[task])
        }
        return Measurement(metrics, scores)


@cache
def task_manager(include_path: str | None) -> TaskManager:
    """The harness's index of tasks, which takes seconds to build."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def obstacle(manager: TaskManager, task: str) -> str | None:
    """Why a task can't be run here, in one line; ``None`` when its data is at hand."""
    from datasets.exceptions import DatasetsError

    if task not in manager.task_index:
        return "lm-eval has no task of that name"
    try:
        manager.load([task])
    except (OSError, DatasetsError, ImportError) as error:
        return f"what it needs can't be had ({str(error).strip().partition(chr(10))[0]})"
    return None


def _values(task: str, scores: dict[str, Any]) -> list[tuple[str, float]]:
    """Metric names and values of one task; the harness writes ``metric,filter``, and errors and labels among them."""
    return [
        (f"{task}/{key.removesuffix(',none').replace(',', '_')}", float(value))
        for key, value in scores.items()
        if isinstance(value, int | float) and "," in key and "_stderr" not in key
    ]
