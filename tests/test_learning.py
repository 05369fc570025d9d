"""A tiny model learns what a real text household answers by the real ``fit``: with the true reward, not with a coin's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwml_lightning.data.transitions import read_transitions
from rwml_lightning.trace import TraceReader
from support.models import write_tiny_model

NUM_GRPO_STEPS = 60


def write_config(folder: Path, control: str) -> Path:
    config: dict[str, Any] = {
        "seed_everything": 0,
        "control": control,
        "run": {"name": "learn", "root": str(folder / "runs")},
        "warm_up": {"num_transitions": 1200, "batch_size": 32, "num_passes": 8, "learning_rate": 2e-3},
        "trainer": {"accelerator": "cpu", "max_steps": NUM_GRPO_STEPS},
        "model": {
            "class_path": "rwml_lightning.modules.WorldModelGRPO",
            "init_args": {"model": str(folder / "model"), "optimizer": {"learning_rate": 1e-4}},
        },
        "data": {
            "environment": {
                "id": "rwml/ALFWorld-v0",
                "kwargs": {"max_steps": 30},
                "games": {"folder": str(folder / "games"), "num_train": 30, "num_validation": 8},
            },
            "generator": {"class_path": "rwml_lightning.generation.HFGenerator"},
            "predictions": {
                "transitions": str(folder / "transitions.parquet"),
                "collection": {
                    "behaviour": "random",
                    "episodes_per_game": 2,
                    "expert_share": 0.4,
                    "max_turns": 30,
                },
                "reward": {
                    "class_path": "rwml_lightning.rewards.EmbeddingReward",
                    "init_args": {"embedder": "package:all-minilm-l6-v2", "device": "cpu"},
                },
                "prompt": {"history_turns": 0, "system": "", "user": "{action}"},
                "sampling": {"max_tokens": 64},
                "prompts_per_step": 16,
                "group_size": 8,
                "validation": {"num_transitions": 128, "group_size": 8, "batch_size": 32},
            },
        },
    }
    file = folder / f"{control}.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def run(command: str, *configs: Path) -> None:
    """Run a command for every config at the same time, one core each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with contextlib.ExitStack() as stack:
        processes = []
        for config in configs:
            log = stack.enter_context(config.with_suffix(".log").open("w"))
            arguments = [sys.executable, "-m", "rwml_lightning", command, "--config", str(config)]
            process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(process.kill)
            processes.append(process)
        for config, process in zip(configs, processes, strict=True):
            assert process.wait(timeout=800) == 0, config.with_suffix(".log").read_text()[-4000:]


def held_out(run_folder: Path, measure: str) -> list[float]:
    """A measure of the sampled held-out predictions before and after GRPO."""
    with TraceReader(run_folder / "trace.db") as reader:
        return [e.result["results"][0][measure] for e in reader.evaluations("wm_grpo")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_true_reward_teaches_and_a_coin_does_not(tmp_path: Path) -> None:
    pytest.importorskip("alfworld")
    configs = {control: write_config(tmp_path, control) for control in ("none", "coin")}
    run("collect", configs["none"])
    train = [t for t in read_transitions(tmp_path / "transitions.parquet") if t.split == "train"]
    write_tiny_model(tmp_path / "model", train, vocabulary=758, hidden_size=128, intermediate_size=512)
    run("fit", *configs.values())
    before, after = held_out(tmp_path / "runs" / "learn", "accuracy")
    before_coin, after_coin = held_out(tmp_path / "runs" / "learn-coin", "accuracy")
    assert before_coin == before  # the same warm-up
    # Seen: 0.40 -> 0.54, with a coin 0.39; 0.44 -> 0.56, with a coin 0.41; the standard error of a difference is 0.02.
    assert after - before > 0.07
    assert after - after_coin > 0.05
    assert after_coin - before < (after - before) / 2
    # Rounding differs between processors, and paths with it. Seen: 0.26 -> 0.43 and 0.27 -> 0.28.
    exact, exact_after = held_out(tmp_path / "runs" / "learn", "exact")
    assert exact_after > exact - 0.02
