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
from rwml_lightning.generation.vllm_worker import (
    WorkerExtension,
    add_adapter,
    forget_expert_kernels,
    renew_tied_head,
)
from rwml_lightning.generation.weight_files import ADAPTER_FILE, write_adapter_folder, write_weight_files
from support.fake_vllm import FakeVLLM


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


class Manager:
    """vLLM's manager of adapters, which packs the parts of a layer and has some layers."""

    def __init__(self) -> None:
        self.modules = {"layers.0.qkv_proj": "layer", "layers.0.o_proj": "layer"}
        self.punica_wrapper_mapping = {"language_model": SimpleNamespace(no_lora=False)}
        self.added: dict[int, Any] = {}

    def add(self, request: Any) -> bool:
        if "forbidden" in request.lora_name:
            raise ValueError("forbidden")
        names = {name.rsplit(".", 2)[0] for name in load_file(Path(request.lora_path) / ADAPTER_FILE)}
        packed = {name.replace("q_proj", "qkv_proj") for name in names}
        self.added[request.lora_int_id] = SimpleNamespace(loras=dict.fromkeys(packed))
        return True

    def get_adapter(self, number: int) -> Any:
        return self.added[number]


def adapter_worker(monkeypatch: pytest.MonkeyPatch, device: str = "cpu") -> tuple[Any, Manager]:
    FakeVLLM(monkeypatch)
    worker: Any = Worker()
    worker.model.parameters = lambda: iter([torch.zeros(1, device=device)])
    manager = Manager()
    worker.model_runner = SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager))
    worker.add_lora = manager.add
    return worker, manager


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (["layers.0.q_proj", "layers.0.o_proj"], ""),
        (["layers.0.q_proj", "layers.9.o_proj", "layers.8.o_proj"], "it has no layer layers.8.o_proj"),
    ],
)
def test_adapters_must_all_have_a_layer(
    monkeypatch: pytest.MonkeyPatch, layers: list[str], reason: str
) -> None:
    worker, manager = adapter_worker(monkeypatch)
    adapters = {f"{layer}.lora_{part}.weight": torch.randn(2, 2) for layer in layers for part in "AB"}
    with ExitStack() as files:
        folder = write_adapter_folder(adapters.items(), {}, files)
        digest = combine_digests(tensor_digest(*named) for named in adapters.items())
        assert worker.load_adapters(folder, 4) == (digest, reason)
        assert list(manager.added) == [4]
        worker.add_lora = lambda request: manager.add(request._replace(lora_name="forbidden"))
        assert worker.load_adapters(folder, 5) == (digest, "forbidden")


@pytest.mark.parametrize(("device", "replaced"), [("cpu", True), ("meta", False)])
def test_the_function_for_adapters_is_replaced_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, replaced: bool
) -> None:
    worker, manager = adapter_worker(monkeypatch, device)
    with ExitStack() as files:
        folder = write_adapter_folder([("layers.0.o_proj.lora_A.weight", torch.ones(1, 1))], {}, files)
        worker.load_adapters(folder, 1)
    (wrapper,) = manager.punica_wrapper_mapping.values()
    assert hasattr(wrapper, "add_lora_linear") == replaced


@pytest.mark.parametrize("no_lora", [False, True])
def test_an_adapter_is_added_to_its_part_of_the_output(no_lora: bool) -> None:
    torch.manual_seed(0)
    sizes = (4, 2)
    x, y = torch.randn(5, 3), torch.randn(5, 8)  # two columns of padding
    a = [torch.randn(1, 1, 2, 3) for _ in sizes]
    b = [torch.randn(1, 1, size, 2) for size in sizes]
    expected = y.clone()
    if not no_lora:
        expected[:, :4] += 0.5 * x @ a[0][0, 0].T @ b[0][0, 0].T
        expected[:, 4:6] += 0.5 * x @ a[1][0, 0].T @ b[1][0, 0].T
    add_adapter(SimpleNamespace(no_lora=no_lora), y, x, a, b, 0.5, sizes, buffer=None)
    torch.testing.assert_close(y, expected)


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
