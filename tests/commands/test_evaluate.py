"""``evaluate``: several models, one table, whatever happens to one of them."""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from rwml_lightning.cli import main
from rwml_lightning.commands import model_evaluator
from rwml_lightning.commands.evaluate import repeat_option
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.generation import HFGenerator
from rwml_lightning.generation.base import SeparateWeights
from rwml_lightning.models import load_tokenizer
from rwml_lightning.modules import LoRA, WorldModelGRPO
from rwml_lightning.modules.base import PolicyModule
from rwml_lightning.schema import Completion, Sampling, Transition
from support.command_line import error_of
from support.fixtures import one_thread  # noqa: F401
from support.models import train_tokenizer
from support.runs import make_config
from support.wandb_files import offline_runs
from support.worlds import OBJECTS, make_world


class Engine(SeparateWeights):
    """Decodes with weights of its own, as an engine in another process does."""

    starts: list[str | None] = []  # noqa: RUF012

    def __init__(self, model: str | None = None) -> None:
        self.model = model
        self.policy_version = 0
        self.max_model_len: int | None = None
        self._copy: HFGenerator | None = None

    def start(self) -> None:
        if self._copy is None:
            self.starts.append(self.model)
            self._copy = HFGenerator(self.model, device="cpu")

    @property
    def copy(self) -> HFGenerator:
        self.start()
        assert self._copy is not None
        return self._copy

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        return self.copy.generate(prompts, sampling, seeds)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.copy.score(sequences)

    @property
    def weights_digest(self) -> str | None:
        return self.copy.weights_digest

    @property
    def weights_dtype(self) -> str:
        return self.copy.weights_dtype

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.copy.update_weights(named_tensors, version)

    def close(self) -> None:
        self._copy = None


@pytest.fixture
def untaught(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with random weights."""
    folder = tmp_path / "untaught"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaForCausalLM.from_pretrained(tiny_model).config).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    return folder


def world() -> list[Transition]:
    """The world, with some of what the tiny model was taught held out: it answers those well."""
    return [replace(t, split="validation" if t.game in OBJECTS[:2] else "train") for t in make_world()]


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Path:
    write_transitions(tmp_path / "t.parquet", world())
    return make_config(tmp_path, tiny_model, predictions={"validation": {"group_size": 2, "batch_size": 3}})


def evaluate(config: Path, *models: Path | str, output: Path) -> dict[str, Any]:
    main(["evaluate", "--config", str(config), "--models", *map(str, models), "--output", str(output)])
    return json.loads((output / "comparison.json").read_text())


@pytest.mark.heavy
def test_models_are_compared_with_the_first(
    tiny_model: Path,
    untaught: Path,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    found = evaluate(config, untaught, tiny_model, output=tmp_path / "out")
    worse, better = (found["results"][str(model)][0] for model in (untaught, tiny_model))
    assert (worse["well_formed"], worse["count"], worse["num_transitions"]) == (0.0, 16, 8)
    assert better["well_formed"] > 0.4  # sampled at temperature 1
    difference = found["differences"][str(tiny_model)]
    assert difference["values"]["similarity"] == pytest.approx(better["similarity"] - worse["similarity"])
    assert difference["intervals"]["well_formed"][0] > 0
    assert found["base"] == str(untaught)
    assert [floor["name"] for floor in found["floors"]] == ["copy_observation", "most_common"]
    printed = capsys.readouterr()
    assert "to the first" in printed.out
    assert "floor:" in printed.out
    assert "model 2 of 2" in printed.err
    assert "held-out 3/3" in printed.err


@pytest.mark.heavy
def test_a_model_scores_the_same_in_any_company(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path
) -> None:
    alone = evaluate(config, tiny_model, output=tmp_path / "alone")
    second = evaluate(config, untaught, tiny_model, output=tmp_path / "second")
    assert alone["results"][str(tiny_model)] == second["results"][str(tiny_model)]
    main(["evaluate", "--config", str(config), "--models", str(tiny_model)])
    in_runs = json.loads((tmp_path / "runs" / "evaluate-r" / "comparison.json").read_text())
    assert in_runs == alone


def save_checkpoint(folder: Path, model: Path, lora: LoRA | None) -> Path:
    module = WorldModelGRPO(model=str(model), lora=lora)
    module.configure_model()
    with torch.no_grad():
        for name, parameter in module.policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    path = folder / f"{'lora' if lora else 'full'}.ckpt"
    torch.save(checkpoint, path)
    return path


@pytest.mark.heavy
def test_a_checkpoint_is_the_model_that_it_exports(tiny_model: Path, config: Path, tmp_path: Path) -> None:
    full = save_checkpoint(tmp_path, tiny_model, None)
    adapted = save_checkpoint(tmp_path, tiny_model, LoRA(rank=2))
    main(["export", "--ckpt_path", str(adapted), "--output", str(tmp_path / "exported")])
    models = [tiny_model, full, adapted, tmp_path / "exported"]
    found = evaluate(config, *models, output=tmp_path / "out")["results"]
    base, of_full, of_adapted, of_exported = (found[str(model)] for model in models)
    assert base == of_full
    assert of_adapted == of_exported != base


@pytest.mark.heavy
def test_one_engine_serves_models_that_differ_in_weights_alone(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tokenizer = train_tokenizer([t.next_state for t in make_world()], 300)
    like = LlamaForCausalLM.from_pretrained(tiny_model).config
    like.vocab_size = len(tokenizer)
    LlamaForCausalLM(like).save_pretrained(other)
    tokenizer.save_pretrained(other)
    models = [tiny_model, untaught, other]
    attached = evaluate(config, *models, output=tmp_path / "attached")
    config.write_text(
        config.read_text().replace("rwml_lightning.generation.HFGenerator", f"{__name__}.Engine")
    )
    Engine.starts.clear()
    copied = evaluate(config, *models, output=tmp_path / "copied")
    assert Engine.starts == [str(tiny_model), str(other)]
    assert copied == attached


@pytest.mark.heavy
def test_one_model_is_in_memory_at_a_time(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies: list[Any] = []
    alive: list[int] = []
    load = PolicyModule.configure_model

    def watched(self: PolicyModule) -> None:
        gc.collect()
        alive.append(sum(policy() is not None for policy in policies))
        first = not hasattr(self, "policy")
        load(self)
        if first:
            policies.append(weakref.ref(self.policy))

    monkeypatch.setattr(PolicyModule, "configure_model", watched)
    evaluate(config, tiny_model, untaught, output=tmp_path / "out")
    assert alive == [0, 1, 0, 1]  # before loading, and as the trainer asks again, for each model


@pytest.mark.heavy
def test_a_second_call_reads_what_is_finished(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    first = evaluate(config, tiny_model, output=output)
    evaluated: list[str] = []
    load = model_evaluator.load_module
    monkeypatch.setattr(
        model_evaluator, "load_module", lambda name, dtype: evaluated.append(name) or load(name, dtype)
    )
    assert evaluate(config, tiny_model, output=output) == first
    assert evaluated == []
    evaluate(config, tiny_model, untaught, output=output)
    assert evaluated == [str(untaught)]

    weights = load_file(untaught / "model.safetensors")
    save_file(
        {name: 2 * weight for name, weight in weights.items()},
        untaught / "model.safetensors",
        {"format": "pt"},
    )
    evaluate(config, tiny_model, untaught, output=output)
    assert evaluated == [str(untaught)] * 2

    write_transitions(tmp_path / "t.parquet", [t for t in world() if t.kind != "push"])
    evaluate(config, tiny_model, output=output)
    assert evaluated == [str(untaught), str(untaught), str(tiny_model)]
    assert len(list(output.glob("*.json"))) == 4 + 1


@pytest.mark.heavy
def test_what_does_not_load_is_named_and_the_others_go_on(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (untaught / "model.safetensors").write_bytes(b"torn")
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(b"torn")
    output = tmp_path / "out"
    models = [str(tmp_path / "no.ckpt"), "./no/model", str(torn), str(untaught), str(tiny_model)]
    arguments = ["evaluate", "--config", str(config), "--models", *models, "--output", str(output)]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    skipped = [line for line in captured.err.splitlines() if line.startswith("skipped: ")]
    for line, model, reason in zip(
        skipped,
        models[:4],
        (
            "no such checkpoint",
            "no such folder",
            "is not a complete checkpoint of rwml-lightning",
            "cannot be loaded",
        ),
        strict=True,
    ):
        assert line.startswith(f"skipped: {model}: ")
        assert reason in line
    assert captured.err.splitlines()[-1] == (
        f"error: skipped models, for the reasons above: {', '.join(models[:4])}"
    )
    found = json.loads((output / "comparison.json").read_text())
    assert list(found["results"]) == [str(tiny_model)]
    assert "Held-out transitions" in captured.out


@pytest.mark.heavy
def test_weights_that_are_not_finite_leave_the_others(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(untaught / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, untaught / "model.safetensors", {"format": "pt"})
    with pytest.raises(SystemExit):
        evaluate(config, untaught, tiny_model, output=tmp_path / "out")
    reason = f"{untaught}: 1 weights hold NaN or infinity, for example model.norm.weight"
    assert f"skipped: {untaught}: {reason}" in capsys.readouterr().err
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())["results"]
    assert list(found) == [str(tiny_model)]


@pytest.mark.heavy
def test_loggers_get_the_comparison(
    tiny_model: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    loggers = [
        {"class_path": "WandbLogger", "init_args": {"project": "test", "offline": True}},
        {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path)}},
    ]
    output = tmp_path / "out"
    arguments = [
        "--models",
        str(tiny_model),
        "--output",
        str(output),
        "--trainer.logger",
        json.dumps(loggers),
    ]
    main(["evaluate", "--config", str(config), *arguments])
    wandb.finish()
    found = json.loads((output / "comparison.json").read_text())["results"][str(tiny_model)][0]
    (part,) = offline_runs(output)
    assert part.run.display_name == "out"
    (table,) = part.increments("models")
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (row["model"], row["transitions"]) == (str(tiny_model), 8)
    (file,) = tmp_path.glob("lightning_logs/*/metrics.csv")
    written = dict(zip(*csv.reader(file.read_text().splitlines()), strict=True))
    for measure in ("similarity", "accuracy", "exact", "agreement"):
        assert row[measure] == pytest.approx(found[measure])
        assert [row[f"{measure}_low"], row[f"{measure}_high"]] == pytest.approx(found["intervals"][measure])
        assert float(written[f"{tiny_model}/{measure}"]) == pytest.approx(found[measure])


@pytest.mark.heavy
def test_prompts_too_long_for_one_model_leave_the_others(
    tiny_model: Path, untaught: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((untaught / "config.json").read_text())
    (untaught / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 21}))
    with pytest.raises(SystemExit):
        evaluate(config, untaught, tiny_model, output=tmp_path / "out")
    assert "(context of 21 minus data.predictions.sampling.max_tokens)" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out" / "comparison.json").read_text())["results"]) == [
        str(tiny_model)
    ]


@pytest.mark.heavy
def test_without_held_out_transitions_nothing_is_loaded(
    tiny_model: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transitions(tmp_path / "t.parquet", [t for t in world() if t.split == "train"])
    message = error_of(["evaluate", "--config", str(config), "--models", str(tiny_model)], capsys)
    assert message == f"error: {tmp_path}/t.parquet holds no validation transitions"


@pytest.mark.heavy
def test_models_are_wanted(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(["evaluate", "--config", str(config)], capsys) == "error: evaluate.models is missing"


def test_an_option_takes_all_that_follows_it() -> None:
    given = ["evaluate", "--models", "a", "package:b", "--output", "c", "--models", "d"]
    assert repeat_option("--models", given) == [
        "evaluate", "--models+=a", "--models+=package:b", "--output", "c", "--models+=d",
    ]  # fmt: skip
    assert repeat_option("--models", ["fit", "--config", "x"]) == ["fit", "--config", "x"]


@pytest.mark.slow
def test_ranks_share_the_work_and_agree(tiny_model: Path, config: Path, tmp_path: Path) -> None:
    rows = []
    for devices in ("1", "2"):
        output = tmp_path / f"on-{devices}"
        subprocess.run(
            [
                sys.executable, "-m", "rwml_lightning", "evaluate", "--config", str(config),
                "--models", str(tiny_model), "--output", str(output),
                "--trainer.devices", devices, "--trainer.strategy", "auto" if devices == "1" else "ddp",
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=250,
            check=True,
        )  # fmt: skip
        found = json.loads((output / "comparison.json").read_text())["results"][str(tiny_model)]
        rows.append({row["name"]: row for row in found})
    one, two = rows
    assert one["all"]["num_transitions"] == two["all"]["num_transitions"] == 8
    for name, row in one.items():
        for measure in ("count", "similarity", "accuracy", "exact", "rouge_l", "agreement"):
            assert two[name][measure] == pytest.approx(row[measure]), (name, measure)
