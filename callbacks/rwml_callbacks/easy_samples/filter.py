"""RWML's easy-sample filter, which drops most transitions that a supervised copy of the model predicts well."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from rwml_callbacks.analysis import find
from rwml_callbacks.easy_samples.columns import read_filter_columns, write_filter_columns
from rwml_callbacks.easy_samples.copy import CopyData, predict_with_copy
from rwml_callbacks.easy_samples.fingerprint import (
    digest_of_names,
    digest_of_weights,
    plain,
    prompt_settings,
    similarity_settings,
)
from rwml_callbacks.easy_samples.marks import (
    Marks,
    check_marks,
    describe_marks,
    histogram,
    mark_easy,
    mean_rewards,
    render_histogram,
)
from rwml_callbacks.easy_samples.parts import Answers, ScoredParts, Throughput, read_parts
from rwml_callbacks.easy_samples.report import filter_metrics, log_filter
from rwml_callbacks.trace_recorder import TraceRecorder
from rwml_lightning import parallel
from rwml_lightning.data.datamodule import RolloutDataModule, rollout_data
from rwml_lightning.data.predictions import Predictions
from rwml_lightning.models import end_token_ids
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.printable import printable
from rwml_lightning.prompts.chat_format import fingerprint
from rwml_lightning.rewards import NextStateReward
from rwml_lightning.schema import Transition
from rwml_lightning.seeds import derive_seed

_LONGEST_WAIT_S = 24 * 3600.0
log = logging.getLogger(__name__)


class EasySampleFilter(L.Callback):
    """Drop most of the easy training transitions before the main stage (arXiv 2602.05842, section 3).

    A copy of the model is trained by next-state SFT on the validation split and predicts every training transition
    ``num_samples`` times. A transition is easy if its mean reward is at least ``tau_easy``. An easy transition stays
    with probability ``keep_probability``; all others stay. The filter changes neither the model of the main stage nor
    any random state.

    The result is stored in the transition file (:mod:`rwml_callbacks.easy_samples.columns`) and is reused until a setting
    that it depends on changes. ``tau_easy``, ``target_share`` and ``keep_probability`` do not need new predictions. An
    interrupted filter continues from its last complete batch.

    Args:
        num_samples: Number of predictions per transition, K (paper: 10).
        tau_d: Distance threshold. A prediction earns 1 if its similarity under ``data.predictions.reward`` is above
            1 - ``tau_d``, else 0 (paper: 0.1 on ALFWorld, 0.15 on tau2-bench).
        reward: Reward that scores the predictions instead; ``tau_d`` then has no effect.
        tau_easy: Smallest mean reward of an easy transition; ``None`` chooses it for ``target_share``.
        target_share: Intended share of easy transitions among the judged ones. Transitions with equal mean rewards are
            treated alike.
        keep_probability: Probability p that an easy transition stays (paper: 0.1).
        train_on: Split that the copy is trained on. With ``train``, the transitions of its training are not judged and
            all stay.
        train_share: Share of that split to train on, a fixed random draw.
        learning_rate: Learning rate of the copy's training (paper's WM SFT: 2e-6).
        batch_size: Number of transitions per optimizer step of the copy (paper's WM SFT: 32).
        num_passes: Number of passes over the copy's training data (paper's WM SFT: 2).
        prompts_per_batch: Number of transitions per call of the generator. A killed filter loses at most this many.
        seed: Seed of the copy's training, its samples and the draw. It is not the run's seed, so that runs can share a
            result.

    Raises:
        ValueError: A setting is out of its range, every or no transition is easy, or fewer transitions than a batch
            remain.

    Example:
        >>> EasySampleFilter(tau_easy=0.9).keep_probability
        0.1
    """

    def __init__(
        self,
        num_samples: int = 10,
        tau_d: float = 0.1,
        reward: NextStateReward | None = None,
        tau_easy: float | None = None,
        target_share: float = 0.3,
        keep_probability: float = 0.1,
        train_on: Literal["validation", "train"] = "validation",
        train_share: float = 1.0,
        learning_rate: float = 2e-6,
        batch_size: int = 32,
        num_passes: int = 2,
        prompts_per_batch: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in {
            "num_samples": num_samples, "batch_size": batch_size, "num_passes": num_passes,
            "prompts_per_batch": prompts_per_batch,
        }.items():  # fmt: skip
            if value < 1:
                raise ValueError(f"EasySampleFilter's {name} is {value}; it must be at least 1")
        if not 0 < target_share < 1:
            raise ValueError(
                f"EasySampleFilter's target_share is {target_share}; it must lie between 0 and 1"
            )
        if not 0 < train_share <= 1 or (train_on == "train" and train_share == 1):
            raise ValueError(
                f"EasySampleFilter's train_share is {train_share}; it must lie above 0 and, where the copy learns from the "
                "training split, below 1, because transitions of its training are not judged"
            )
        if not 0 <= keep_probability <= 1:
            raise ValueError(f"EasySampleFilter's keep_probability is {keep_probability}; it lies in [0, 1]")
        if not 0 < tau_d <= 2:
            raise ValueError(f"EasySampleFilter's tau_d is {tau_d}; a cosine distance lies between 0 and 2")
        if tau_easy is not None and tau_easy <= 0:
            raise ValueError(
                f"EasySampleFilter's tau_easy is {tau_easy}, which makes every transition easy: raise it, or leave it out "
                "and set target_share"
            )
        self.num_samples = num_samples
        self.tau_d = tau_d
        self.reward = reward
        self.tau_easy = tau_easy
        self.target_share = target_share
        self.keep_probability = keep_probability
        self.train_on = train_on
        self.train_share = train_share
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.num_passes = num_passes
        self.prompts_per_batch = prompts_per_batch
        self.seed = seed
        self._filtered: RolloutDataModule | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            assert isinstance(pl_module, PolicyModule)
            self.prepare_run(trainer, pl_module, rollout_data(trainer))

    def prepare_run(self, trainer: L.Trainer, model: PolicyModule, data: RolloutDataModule) -> None:
        """Filter the training transitions of ``data`` once, if possible before ``model`` has loaded its weights.

        Args:
            trainer: Trainer of the main stage, running or not; the copy runs on the same devices.
            model: Module of the main stage; the copy starts from the same weights.
            data: Data module of the main stage.
        """
        if data is self._filtered:
            return
        recorder = find(trainer, TraceRecorder)
        try:
            if recorder is not None and trainer.is_global_zero:
                recorder.writer.heartbeat()  # opens the store, which shows the run as running
            _make_ready(trainer, model, data)
            settings = data.need_predictions()
            _check_batch(settings, len(data.prediction_source.train), "are there")
            with _alone(trainer, settings.path):
                self._apply(trainer, model, data, recorder)
        except BaseException as error:
            if recorder is not None:
                recorder.on_exception(trainer, model, error)
            raise
        self._filtered = data

    def _apply(
        self,
        trainer: L.Trainer,
        model: PolicyModule,
        data: RolloutDataModule,
        recorder: TraceRecorder | None,
    ) -> None:
        taught, judged = self._choose(data)
        predictions = self._prediction_settings(model, data, taught, judged, trainer.precision)
        decision = {name: getattr(self, name) for name in ("tau_easy", "target_share", "keep_probability")}
        digest = hashlib.sha256(json.dumps(predictions, sort_keys=True).encode()).hexdigest()[:12]
        source, path = data.prediction_source, data.need_predictions().path
        work = path.with_name(f"{path.name}.filter-{digest}")
        found = read_filter_columns(path)
        if found is not None and found.settings["predictions"] == predictions:
            rewards, throughput = found.mean_rewards, Throughput(**found.settings["throughput"])
        else:
            found = None
            beat = recorder.writer.heartbeat if recorder and trainer.is_global_zero else lambda: None
            self._predict(trainer, model, data, taught, judged, work, beat)
            rewards, throughput = read_parts(work)
            parallel.gather(None)  # all wait, however long it takes
        marks = mark_easy(rewards, **decision, seed=self.seed)
        remaining = marks.kept | ({t.transition_id for t in source.train} - rewards.keys())
        if trainer.is_global_zero:
            print(printable(describe_marks(marks, len(rewards))), file=sys.stderr)
        self._check(marks, rewards, data, len(remaining), trainer.is_global_zero)
        settings = {"predictions": predictions, "decision": decision, "throughput": vars(throughput)}
        if trainer.is_global_zero:
            if found is None or found.settings != settings:
                write_filter_columns(path, rewards, marks.kept, settings)
            shutil.rmtree(work, ignore_errors=True)
            metrics = filter_metrics(marks, len(rewards), throughput)
            log_filter(trainer.loggers, metrics, rewards)
            if recorder is not None:
                result = {**metrics, "histogram": histogram(list(rewards.values()))}
                recorder.writer.write_evaluation(model.stage, 0, result, name="easy_samples")
        source.keep_only(remaining)

    def _choose(self, data: RolloutDataModule) -> tuple[list[Transition], list[Transition]]:
        """Return the transitions that the copy is trained on and those that it judges."""
        source = data.prediction_source
        learnable = source.whole_validation_split() if self.train_on == "validation" else source.train
        if not learnable:
            raise ValueError(
                f"{source.settings.path} has no validation transitions to train the easy-sample filter's copy on: set "
                "EasySampleFilter's train_on to 'train' and train_share to 0.1"
            )
        order = sorted(learnable, key=lambda t: derive_seed(self.seed, "taught", t.transition_id))
        taught = order[: max(round(self.train_share * len(order)), 1)]
        names = {transition.transition_id for transition in taught}
        return taught, [t for t in source.train if t.transition_id not in names]

    def _prediction_settings(
        self,
        model: PolicyModule,
        data: RolloutDataModule,
        taught: Sequence[Transition],
        judged: Sequence[Transition],
        precision: str | None,
    ) -> dict[str, Any]:
        """Return all settings that the mean rewards depend on, as they are after a round trip through JSON."""
        names = ("num_samples", "learning_rate", "batch_size", "num_passes", "seed")
        settings = {name: getattr(self, name) for name in names} | {
            "model": model.model,
            "init_from": digest_of_weights(model.init_from),
            "lora": model.lora,
            "dtype": model.dtype_name,
            "precision": precision,
            "chat": fingerprint(data.ask(model).chat),
            "generator": type(data.generator).__qualname__,
            "end_tokens": sorted(
                getattr(data.generator, "end_token_ids", None) or end_token_ids(model.model)
            ),
            "reward": similarity_settings(data.need_predictions().need_reward()) | {"tau_d": self.tau_d}
            if self.reward is None
            else self.reward,
            "taught": digest_of_names(taught),
            "judged": digest_of_names(judged),
            **prompt_settings(data),
        }
        return json.loads(json.dumps(plain(settings)))

    def _predict(
        self,
        trainer: L.Trainer,
        model: PolicyModule,
        data: RolloutDataModule,
        taught: Sequence[Transition],
        judged: Sequence[Transition],
        work: Path,
        heartbeat: Callable[[], None],
    ) -> None:
        """Train the copy and predict the judged transitions without results in ``work``."""
        done = read_parts(work)[0]
        todo = [t for t in judged if t.transition_id not in done]
        if not todo:
            return
        log.warning(
            "easy-sample filter: a copy of the model is trained on %d transitions, then predicts %d, %d times each",
            len(taught), len(todo), self.num_samples,
        )  # fmt: skip
        copy_data = CopyData(
            data, taught, todo, self.batch_size, self.num_passes, self.num_samples, self.prompts_per_batch, self.seed
        )  # fmt: skip
        reward, tau_d = self.reward, None
        if reward is None:
            reward, tau_d = data.need_predictions().need_reward(), self.tau_d

        def score(answers: Answers) -> dict[str, float]:
            return mean_rewards(reward, tau_d, answers.transitions, answers.predictions)

        parts = ScoredParts(work, score, len(judged), heartbeat)
        with isolate_rng():
            predict_with_copy(trainer, model, copy_data, self.learning_rate, parts)

    def _check(
        self, marks: Marks, rewards: Mapping[str, float], data: RolloutDataModule, remaining: int, show: bool
    ) -> None:
        try:
            check_marks(marks, len(rewards), calibrated=self.tau_easy is None)
            _check_batch(data.need_predictions(), remaining, "remain after the easy-sample filter")
        except ValueError:
            if show:
                print("mean rewards of the training transitions:", file=sys.stderr)
                print(printable(render_histogram(histogram(list(rewards.values())))), file=sys.stderr)
            raise


def _make_ready(trainer: L.Trainer, model: PolicyModule, data: RolloutDataModule) -> None:
    """Set up the data as the trainer's own hooks would, for a filter that runs before them."""
    if data.trainer is not None:
        return
    trainer.strategy.connect(model)
    data.trainer = trainer
    if trainer.is_global_zero:
        data.prepare_data()
    parallel.gather(None)  # all wait, however long it takes
    data.setup("fit")


@contextmanager
def _alone(trainer: L.Trainer, path: Path) -> Iterator[None]:
    """Lock the transition file. Another run with the same file, as in a sweep, waits and then finds the result."""
    lock = FileLock(path.with_name(f".{path.name}.filter.lock"))
    if trainer.is_global_zero:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("another run filters %s; waiting for its result", path)
            lock.acquire(timeout=_LONGEST_WAIT_S)
    parallel.gather(None)  # all wait, however long it takes
    try:
        yield
    finally:
        lock.release()


def _check_batch(settings: Predictions, count: int, when: str) -> None:
    if count < settings.prompts_per_step:
        raise ValueError(
            f"{settings.path}: {count} training transitions {when}, fewer than one batch (data.predictions.prompts_per_step is "
            f"{settings.prompts_per_step}): lower it, collect more, or raise EasySampleFilter's keep_probability or tau_easy"
        )
