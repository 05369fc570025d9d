"""What comes before the main stage runs where the main stage will."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator

from rwml_lightning import stages
from rwml_lightning.run import RunFolder
from rwml_lightning.stages import WarmUp, preliminary_trainer, warm_up


class FourGPUs(CUDAAccelerator):
    """GPUs that can be named but not used."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def auto_device_count() -> int:
        return 4

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices if isinstance(devices, list) else list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        return [torch.device("cuda", index) for index in devices]


def make(**arguments: Any) -> L.Trainer:
    return L.Trainer(logger=False, enable_checkpointing=False, **arguments)


@pytest.mark.parametrize("devices", [[1], [3], [0], [2, 0], [1, 3], 4])
def test_it_takes_the_same_gpus(devices: list[int] | int) -> None:
    trainer = make(accelerator=FourGPUs(), devices=devices)
    before = preliminary_trainer(trainer, [])
    expected = [torch.device("cuda", i) for i in (devices if isinstance(devices, list) else range(devices))]
    if len(expected) == 1:
        assert before.strategy.root_device == expected[0]
    else:
        assert before.strategy.parallel_devices == expected  # type: ignore[attr-defined]
    assert type(before.strategy) is type(trainer.strategy)


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_it_takes_the_same_processes_and_strategy(num_nodes: int) -> None:
    trainer = make(
        accelerator="cpu", devices=2, num_nodes=num_nodes, strategy="ddp_find_unused_parameters_true"
    )
    before = preliminary_trainer(trainer, [])
    assert (before.num_devices, before.num_nodes) == (2, num_nodes)
    assert before.world_size == trainer.world_size == 2 * num_nodes
    assert type(before.strategy) is type(trainer.strategy)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_warm_up_that_is_stopped_leaves_no_result(
    stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a warm-up must not become the start of the main stage, in this run or the next."""
    folder, asked = RunFolder(tmp_path), SimpleNamespace(stop_requested=stopped)
    trainer: Any = SimpleNamespace(callbacks=[asked], validate=lambda *_, **__: None, fit=lambda *_: None)
    monkeypatch.setattr(stages, "preliminary_trainer", lambda *_: trainer)
    monkeypatch.setattr(stages, "supervised_copy", lambda *_: "copy")
    monkeypatch.setattr(stages, "write_export", lambda module, output, probe_ids: output.mkdir())
    model: Any = SimpleNamespace(lora=None, dtype_name="float32", reads="predictions", init_from=None)
    data: Any = SimpleNamespace(limited_to=lambda *_: nullcontext(), probe_ids=lambda: [1])
    result = warm_up(WarmUp(), model, data, trainer, folder, [])
    assert result == (None if stopped else folder.warm_up)
    assert folder.warm_up.is_dir() is not stopped
