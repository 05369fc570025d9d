"""What runs inside vLLM's workers: which tensors its loader gets, the tied head, and the watch over the trainer."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation import vllm_worker
from rwml_lightning.generation.vllm_worker import WorkerExtension, forget_expert_kernels, renew_tied_head
from rwml_lightning.generation.weight_files import write_weight_files


class Head:
    """An output head that keeps what is done to it."""

    def __init__(self, done: list[Any]) -> None:
        self.done = done
        self.quant_method = SimpleNamespace(
            process_weights_after_loading=lambda head: done.append(("packed", head))
        )

    def tie_weights(self, embeddings: Any) -> None:
        self.done.append(("tied", embeddings))


def make_model(done: list[Any], tied: bool | None = True) -> Any:
    config = SimpleNamespace() if tied is None else SimpleNamespace(tie_word_embeddings=tied)
    inner = SimpleNamespace(embed_tokens="embeddings")
    experts = SimpleNamespace(quant_method=SimpleNamespace(moe_kernel="packed"))
    return SimpleNamespace(
        config=config,
        model=inner,
        lm_head=Head(done),
        experts=experts,
        parameters=lambda: iter([torch.zeros(1)]),
        modules=lambda: [experts],
    )


class Worker(WorkerExtension):
    """A worker whose loader keeps the tensors."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.loaded: dict[str, Tensor] = {}
        self.model = make_model(self.done)

    def reload_weights(self, weights_iterator: Iterable[tuple[str, Tensor]]) -> None:  # type: ignore[override]
        assert self.model.experts.quant_method.moe_kernel is None  # or the packed storage would be written to
        self.loaded = dict(weights_iterator)
        self.done.append("loaded")

    def get_model(self) -> Any:  # type: ignore[override]
        return self.model


def test_the_loader_gets_every_tensor_of_every_file(tiny_model: Path) -> None:
    weights = {name: tensor + 1 for name, tensor in load_file(tiny_model / "model.safetensors").items()}
    worker = Worker()
    with ExitStack() as files:
        paths = write_weight_files(weights.items(), files, file_bytes=20_000)
        assert len(paths) > 1
        digest = worker.load_weight_files(str(tiny_model), paths)
    assert worker.loaded.keys() == weights.keys()
    assert all(torch.equal(worker.loaded[name], tensor) for name, tensor in weights.items())
    assert digest == combine_digests(tensor_digest(*named) for named in weights.items())
    assert [one if one == "loaded" else one[0] for one in worker.done] == ["loaded", "tied", "packed"]


def test_kernels_on_a_gpu_stay() -> None:
    model = make_model([])
    model.parameters = lambda: iter([torch.zeros(1, device="meta")])
    forget_expert_kernels(model)
    assert model.experts.quant_method.moe_kernel == "packed"


def test_a_tied_head_is_tied_and_packed_anew() -> None:
    done: list[Any] = []
    model = make_model(done)
    renew_tied_head(model)
    assert done == [("tied", "embeddings"), ("packed", model.lm_head)]


def without_head(model: Any) -> None:
    del model.lm_head


def without_embeddings(model: Any) -> None:
    del model.model.embed_tokens


def without_inner(model: Any) -> None:
    del model.model


def one_and_the_same(model: Any) -> None:
    model.model.embed_tokens = model.lm_head


@pytest.mark.parametrize("change", [without_head, without_embeddings, without_inner, one_and_the_same])
def test_a_model_without_a_head_of_its_own_is_left_alone(change: Callable[[Any], None]) -> None:
    done: list[Any] = []
    model = make_model(done)
    change(model)
    renew_tied_head(model)
    assert not done


@pytest.mark.parametrize("tied", [False, None])
def test_a_head_that_is_not_tied_keeps_its_weights(tied: bool | None) -> None:
    done: list[Any] = []
    renew_tied_head(make_model(done, tied))
    assert not done


def test_the_engine_ends_with_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, alive = list[Any](), iter([True, True, False])

    class Now:
        """A thread that runs at once."""

        def __init__(self, target: Callable[[], None], daemon: bool) -> None:
            assert daemon  # or it would keep the worker from ending
            self.start = target

    monkeypatch.setattr(vllm_worker.threading, "Thread", Now)
    monkeypatch.setattr(vllm_worker.psutil, "pid_exists", lambda pid: (seen.append(pid), next(alive))[1])
    monkeypatch.setattr(vllm_worker.time, "sleep", lambda seconds: seen.append(("slept", seconds)))
    monkeypatch.setattr(vllm_worker.os, "kill", lambda *a: seen.append(("killed", *a)))
    monkeypatch.setattr(vllm_worker.os, "_exit", lambda code: seen.append(("left", code)))
    Worker().end_with(trainer_pid=11, engine_pid=12)
    assert seen == [11, ("slept", 2.0), 11, ("slept", 2.0), 11, ("killed", 12, signal.SIGKILL), ("left", 1)]
