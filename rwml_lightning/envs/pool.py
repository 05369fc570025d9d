"""A bounded pool of processes that steps many text environments at once.

A failure is a record and never a reward. If an environment raises, or a worker hangs or dies, the pool reports the affected slots
and replaces the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import gymnasium

from rwml_lightning.envs.boundary import Observation, read_reset, read_step, read_walkthrough
from rwml_lightning.envs.make import EnvironmentSpec
from rwml_lightning.envs.worker import Failure, Worker, collect

Answer = TypeVar("Answer")
Result = Observation | Failure


class EnvironmentPool:
    """Context manager that steps environments in worker processes.

    A slot is a place for one running episode. The caller numbers the slots from 0, and slot ``i`` belongs to worker
    ``i % num_workers``. A worker that hangs or dies is killed, and the episodes of all its slots are lost. A worker gets no new
    episodes after one of its environments has raised, or after ``max_episodes_per_worker`` episodes: a new worker replaces it, and
    the old one ends when its running episodes have ended. So there are at most twice ``num_workers`` processes, and usually
    ``num_workers``.

    The pool is not thread-safe.

    Args:
        spec: Specification of the environment. Each slot has its own environment, which is kept for the next episodes until it
            fails.
        num_workers: Number of worker processes.
        step_timeout_s: Time limit of a step or a walkthrough, in seconds.
        max_episodes_per_worker: Number of episodes after which a worker is replaced (against leaks in native code).
        reset_timeout_s: Time limit of a reset (which may make the environment and load a game), in seconds. The default is the
            larger of 120 and ``step_timeout_s``.
        start_timeout_s: Time limit for the start of a worker process, in seconds.

    Raises:
        ValueError: A limit is not positive.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        num_workers: int = 2,
        step_timeout_s: float = 30.0,
        max_episodes_per_worker: int = 500,
        reset_timeout_s: float | None = None,
        start_timeout_s: float = 120.0,
    ) -> None:
        if reset_timeout_s is None:
            reset_timeout_s = max(120.0, step_timeout_s)
        limits = {
            "num_workers": num_workers,
            "step_timeout_s": step_timeout_s,
            "max_episodes_per_worker": max_episodes_per_worker,
            "reset_timeout_s": reset_timeout_s,
            "start_timeout_s": start_timeout_s,
        }
        for name, value in limits.items():
            if value <= 0:
                raise ValueError(f"{name}: {value} is not positive")
        self.spec = spec
        self.step_timeout_s = step_timeout_s
        self.reset_timeout_s = reset_timeout_s
        self.max_episodes_per_worker = max_episodes_per_worker
        self.start_timeout_s = start_timeout_s
        self.num_replaced = 0
        """Number of workers replaced so far, for any reason."""
        self._workers: list[Worker] = [self._start_worker() for _ in range(num_workers)]
        self._retiring: set[Worker] = set()
        self._num_episodes: dict[Worker, int] = {}
        self._tainted: set[Worker] = set()
        self._worker_of: dict[int, Worker] = {}
        self._closed = False

    def reset_many(self, episodes: Iterable[tuple[int, int, str | None]]) -> dict[int, Result]:
        """Reset slots to begin new episodes.

        Args:
            episodes: (slot, seed, task id) of each episode. With ``None`` as the task id the environment draws a task.

        Returns:
            First observation, or failure, by slot.
        """
        requested = {slot: (seed, task) for slot, seed, task in episodes}
        for slot in requested:
            self._worker_of.pop(slot, None)
        self._close_idle_workers()
        for slot in requested:
            worker = self._worker_for(slot)
            self._worker_of[slot] = worker
            self._num_episodes[worker] = self._num_episodes.get(worker, 0) + 1
        requests = {slot: ("reset", slot, argument) for slot, argument in requested.items()}
        return self._exchange(requests, self.reset_timeout_s)

    def step_many(self, actions: Mapping[int, str]) -> dict[int, Result]:
        """Step the environments of several slots.

        Args:
            actions: Action by slot.

        Returns:
            Observation, or failure, by slot. A slot without a running episode gives a ``Failure``.
        """
        return self._exchange(
            {slot: ("step", slot, action) for slot, action in actions.items()}, self.step_timeout_s
        )

    def walkthrough_many(self, slots: Iterable[int]) -> dict[int, tuple[str, ...] | Failure]:
        """Return the expert's actions by slot. Each slot must have been reset and not stepped."""
        return self._exchange({slot: ("walkthrough", slot, None) for slot in slots}, self.step_timeout_s)

    def close(self) -> None:
        """End all worker processes. It may be called twice."""
        if not self._closed:
            self._closed = True
            for worker in [*self._workers, *self._retiring]:
                worker.close()
            self._worker_of.clear()

    def __enter__(self) -> EnvironmentPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_worker(self) -> Worker:
        return Worker(
            "rwml_lightning.envs.pool:EnvironmentServer", self.spec, start_timeout_s=self.start_timeout_s
        )

    def _worker_for(self, slot: int) -> Worker:
        """Return the worker for a new episode in a slot. A worker that has died or needs replacement is replaced first."""
        index = slot % len(self._workers)
        worker = self._workers[index]
        needs_replacement = (
            worker in self._tainted or self._num_episodes.get(worker, 0) >= self.max_episodes_per_worker
        )
        if worker.alive and not (needs_replacement and len(self._retiring) < len(self._workers)):
            return worker
        self._workers[index] = self._start_worker()
        self.num_replaced += 1
        self._retiring.add(worker)
        self._close_idle_workers()
        return self._workers[index]

    def _close_idle_workers(self) -> None:
        """Close the retiring workers that have no running episode."""
        for worker in self._retiring - set(self._worker_of.values()):
            worker.close()
            self._retiring.discard(worker)
            self._tainted.discard(worker)
            self._num_episodes.pop(worker, None)

    def _exchange(self, requests: Mapping[int, tuple[str, int, Any]], timeout_s: float) -> dict[int, Any]:
        assert not self._closed, "the pool is closed"
        results: dict[int, Any] = {}
        batches: dict[Worker, dict[Any, Any]] = {}
        for slot, request in requests.items():
            worker = self._worker_of.get(slot)
            if worker is None or not worker.alive:
                results[slot] = Failure("lost", f"slot {slot} has no running episode: reset it first")
            else:
                batches.setdefault(worker, {})[slot] = request
        for worker, batch in batches.items():
            worker.submit(batch, timeout_s)
        for key, answer in collect(list(batches)):
            slot = int(str(key))
            if isinstance(answer, Failure):
                self._tainted.add(self._worker_of.pop(slot))
                answer = Failure(answer.reason, f"slot {slot}: {answer.error}")
            results[slot] = answer
        # The slots of dead workers give failures until they are reset.
        self._worker_of = {slot: worker for slot, worker in self._worker_of.items() if worker.alive}
        self._close_idle_workers()
        return {slot: results[slot] for slot in requests}


class EnvironmentServer:
    """Request handler in a worker process, which holds the environments of the slots and checks their answers.

    Args:
        spec: Specification of the environments.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        self._spec = spec
        self._environments: dict[int, gymnasium.Env[Any, Any]] = {}
        self._episodes: dict[int, tuple[str | None, int]] = {}
        self._num_steps: dict[int, int] = {}

    def __call__(self, request: tuple[str, int, Any]) -> Any:
        """Answer one request. An environment that raises is dropped, so the next episode of its slot gets a new one."""
        operation, slot, argument = request
        handlers: dict[str, Callable[[int, Any], Any]] = {
            "reset": self._reset,
            "step": self._step,
            "walkthrough": self._walkthrough,
        }
        try:
            return handlers[operation](slot, argument)
        except BaseException:
            self._environments.pop(slot, None)
            raise

    def _reset(self, slot: int, argument: tuple[int, str | None]) -> Observation:
        if slot not in self._environments:
            self._environments[slot] = self._spec.make()
        seed, task = argument
        self._episodes[slot], self._num_steps[slot] = (task, seed), 0
        answer = self._environments[slot].reset(seed=seed, options=None if task is None else {"task": task})
        return self._check(slot, "reset", read_reset, answer)

    def _step(self, slot: int, action: str) -> Observation:
        self._num_steps[slot] += 1
        answer = self._environments[slot].step(action)
        return self._check(slot, f"step {self._num_steps[slot]}", read_step, answer)

    def _walkthrough(self, slot: int, _: None) -> tuple[str, ...]:
        answer = self._environments[slot].get_wrapper_attr("walkthrough")()
        return self._check(slot, "walkthrough", read_walkthrough, answer)

    def _check(self, slot: int, where: str, read: Callable[[Any], Answer], answer: Any) -> Answer:
        try:
            return read(answer)
        except ValueError as error:
            task, seed = self._episodes[slot]
            game = f"seed {seed}" if task is None else f"task {task!r}, seed {seed}"
            raise ValueError(f"environment {self._spec.id!r} ({game}), {where}: {error}") from None
