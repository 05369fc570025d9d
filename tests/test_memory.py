"""The plan of a run's memory: its parts, the recipes for one card of 80 GB, what is refused, and what a process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, Qwen2Config, Qwen3Config

from rwml_lightning import models
from rwml_lightning.cli import main
from rwml_lightning.generation import HFGenerator, VLLMGenerator
from rwml_lightning.memory import GIB, Embedder, Hardware, Plan, local_embedders, plan
from rwml_lightning.memory.sizes import measure
from rwml_lightning.modules import LoRA, WorldModelGRPO, WorldModelSFT
from support.command_line import Parsed, ParsingCLI, error_of
from support.configs import stack_of
from support.paths import ROOT
from support.runs import write_config
from support.training import make

H100 = Hardware("cuda", 79 * GIB, mixed_precision=True)
ONE_CARD: dict[str, Any] = {"dtype": "bfloat16", "stochastic_rounding": True, "moments": "int8"}
EMBEDDER_BYTES = 15_134_000_000
RECIPES = [
    f"{world}/{stage}" for world in ("alfworld", "tau2") for stage in ("wm_grpo", "wm_sft", "policy_grpo")
]


def write_architecture(folder: Path, config: PreTrainedConfig, num_bytes: int = 0) -> Path:
    """A model folder without weights: its config, and a sparse file of that size."""
    folder.mkdir()
    config.save_pretrained(folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The architectures of the published recipes, with the sizes of their configs on the hub."""
    root = tmp_path_factory.mktemp("hub")
    qwen2 = Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False,
    )  # fmt: skip
    qwen3 = Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False,
    )  # fmt: skip
    return {
        "Qwen/Qwen2.5-7B-Instruct": write_architecture(root / "qwen2", qwen2),
        "Qwen/Qwen3-8B": write_architecture(root / "qwen3", qwen3),
        "Qwen/Qwen3-Embedding-8B": write_architecture(root / "embedder", qwen3, EMBEDDER_BYTES),
    }


def plan_of(
    recipe: str, hardware_file: str, hardware: Hardware, hub: dict[str, Path], monkeypatch: pytest.MonkeyPatch, *extra: str
) -> Plan:  # fmt: skip
    """The plan of a shipped recipe on that hardware, from the real parser."""
    real = models.resolve_model
    for module in ("models", "memory.planning"):
        target = f"rwml_lightning.{module}.resolve_model"
        monkeypatch.setattr(target, lambda name: hub.get(str(name)) or real(name))
    stack = [word.replace("one_80gb", hardware_file) for word in stack_of(f"configs/{recipe}.yaml")]
    monkeypatch.setattr(sys, "argv", ["rwml_lightning", "fit", *stack, *extra])
    found: list[Plan] = []

    class Planning(ParsingCLI):
        def instantiate_trainer(self, **_: Any) -> Any:
            given = self.config["fit"].data.predictions
            rewards = [] if given is None else [given.reward, given.evaluator]
            self.model.check_precision(self._get(self.config_init, "trainer").precision)
            found.append(
                plan(self.model, self.datamodule.generator, list(local_embedders(rewards)), hardware)
            )
            raise Parsed

    with pytest.raises(Parsed):
        Planning()
    return found[0]


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_published_recipe_fits_one_card_of_80_gb(
    recipe: str, hub: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = plan_of(recipe, "one_80gb", H100, hub, monkeypatch)
    found.check()
    sizes = {part.name: part.num_bytes for part in found.parts}
    num_parameters = {"alfworld": 7_615_616_512, "tau2": 8_190_735_360}[recipe.partition("/")[0]]
    for name in ("weights", "gradients"):
        assert sizes[name]["update"] == pytest.approx(2 * num_parameters, rel=1e-3)
    assert sizes["moments"]["update"] == pytest.approx(2 * num_parameters * (1 + 4 / 256), rel=2e-3)
    assert sizes["generator"]["update"] == GIB  # it sleeps
    assert sizes["generator"]["rollouts"] == pytest.approx(0.35 * H100.available)
    with_embedder = "wm" in recipe
    assert (sizes["embedder"]["update"] > EMBEDDER_BYTES) == with_embedder
    assert ("KL reference" in sizes) == ("grpo" in recipe)
    if "grpo" in recipe:
        assert sizes["KL reference"] == {"reference": sizes["weights"]["update"]}
    assert max(found.total(phase) for phase in found.phases) > 55 * GIB


@pytest.mark.heavy
@pytest.mark.parametrize("recipe", ["alfworld/wm_grpo", "tau2/policy_grpo"])
def test_a_published_recipe_fits_eight_cards_and_not_one_in_float32(
    recipe: str, hub: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    eight = replace(H100, world_size=8, sharded=True)
    with monkeypatch.context() as patch:
        plan_of(recipe, "eight_80gb", eight, hub, patch).check()
    found = plan_of(recipe, "eight_80gb", H100, hub, monkeypatch)
    with pytest.raises(
        ValueError,
        match=r"needs 1\d\d\.\d GiB during an update, but the card has 79\.0; the biggest part is moments \(\d\d\.\d GiB\): set "
        r"model\.init_args\.optimizer\.moments int8",
    ):
        found.check()


def parts_of(
    module: Any, generator: Any = None, hardware: Hardware = H100, *embedders: Embedder
) -> dict[str, Any]:
    return {part.name: part.num_bytes for part in plan(module, generator, embedders, hardware).parts}


def test_weights_gradients_and_moments_are_those_of_the_loaded_module(tiny_model: Path) -> None:
    cases: list[dict[str, Any]] = [{}, ONE_CARD, {"moments": "int8"}, {"lora": LoRA(rank=4)}, {"dtype": "bfloat16", "lora": LoRA(rank=16)}]  # fmt: skip
    for settings in cases:
        module: Any = make(WorldModelSFT, model=str(tiny_model), **settings)
        found = parts_of(module)
        module.configure_model()
        tensors = [*module.policy.parameters(), *module.policy.buffers()]
        assert found["weights"]["update"] == sum(t.numel() * t.element_size() for t in tensors)
        trained = [p for p in module.policy.parameters() if p.requires_grad]
        assert found["gradients"] == {"update": sum(p.numel() * p.element_size() for p in trained)}
        optimizer, _ = module.optimizer.make(trained, 1)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        kept = sum(
            v.numel() * v.element_size()
            for s in optimizer.state.values()
            for k, v in s.items()
            if k != "step"
        )
        assert found["moments"]["rollouts"] == pytest.approx(kept, abs=1)


def test_ranks_share_what_is_sharded(tiny_model: Path) -> None:
    module = make(WorldModelGRPO, model=str(tiny_model), kl_coefficient=0.1)
    whole = parts_of(module)
    sharded = parts_of(module, None, replace(H100, world_size=4, sharded=True))
    for name in ("weights", "gradients", "moments", "KL reference"):
        assert sharded[name]["update"] == whole[name]["update"] / 4
    assert parts_of(module, None, replace(H100, world_size=4)) == whole
    assert sharded["gathered weights"]["update"] > 0 == whole["gathered weights"]["update"]


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({}, "cuda", None),
        ({"kl_coefficient": 0.1}, "cuda", {"rollouts", "update"}),
        ({"kl_coefficient": 0.1, "reference_device": "cpu"}, "cuda", {"reference"}),
        ({"kl_coefficient": 0.1, "reference_device": "cpu"}, "cpu", {"rollouts", "update"}),
        ({"kl_coefficient": 0.1, "lora": LoRA(rank=2)}, "cuda", None),
    ],
)
def test_a_reference_is_counted_where_it_is(
    tiny_model: Path, settings: Any, kind: Any, expected: Any
) -> None:
    found = parts_of(make(WorldModelGRPO, model=str(tiny_model), **settings), None, Hardware(kind, GIB))
    assert (set(found["KL reference"]) if "KL reference" in found else None) == expected


def test_a_generator_takes_what_its_settings_say(tiny_model: Path) -> None:
    module = make(WorldModelSFT, model=str(tiny_model))
    own = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(tiny_model).parameters())
    shares = [
        VLLMGenerator(gpu_memory_utilization=0.25, enable_sleep_mode=sleeps) for sleeps in (False, True)
    ]
    awake, sleeping = (parts_of(module, one)["generator"] for one in shares)
    assert awake == {"rollouts": 0.25 * H100.available, "update": 0.25 * H100.available}
    assert sleeping == {"rollouts": 0.25 * H100.available, "update": GIB}
    on_cpu = parts_of(module, VLLMGenerator(kv_cache_gib=0.5, enable_sleep_mode=True), Hardware("cpu", GIB))[
        "generator"
    ]
    assert on_cpu["rollouts"] == on_cpu["update"] == pytest.approx(4 * own + 1.7 * GIB)
    attached = parts_of(module, HFGenerator(max_num_seqs=3, max_model_len=64))["generator"]
    layers, heads, width = 2, 4, 8
    assert attached == {"rollouts": 2 * layers * heads * width * 4 * 3 * 64, "update": 0.0}
    assert parts_of(module, object())["generator"] == {}


def test_an_embedder_is_on_the_card_unless_it_is_told_otherwise(
    tiny_model: Path, hub: dict[str, Path]
) -> None:
    folder = hub["Qwen/Qwen3-Embedding-8B"]
    module = make(WorldModelSFT, model=str(tiny_model))
    expected = EMBEDDER_BYTES + 64 * 128 * 4096 * 40
    for device, on_card in ((None, True), ("cuda", True), ("cpu", False)):
        found = parts_of(module, None, H100, Embedder(folder, device))["embedder"]
        assert found == dict.fromkeys(("rollouts", "update"), float(expected) if on_card else 0)
    on_cpu = parts_of(module, None, Hardware("cpu", GIB), Embedder(folder, "cpu"))
    assert on_cpu["embedder"]["update"] == expected


def test_embedders_are_found_at_any_depth_but_not_behind_a_server() -> None:
    def reward(**arguments: Any) -> dict[str, Any]:
        return {"class_path": "x", "init_args": {"embedder": "package:all-minilm-l6-v2", **arguments}}

    part = {"rewards": {"tool": reward(device="cpu", batch_size=8), "user": reward(server={"url": "x"})}}
    (found,) = local_embedders([part, None])
    assert (found.device, found.batch_size) == ("cpu", 8)
    assert 85e6 < found.num_bytes < 250e6


def test_what_does_not_fit_is_refused_in_one_line(tiny_model: Path) -> None:
    module = make(WorldModelSFT, model=str(tiny_model), max_tokens_per_micro_batch=2_000_000)
    found = plan(module, None, [], Hardware("cuda", 4 * GIB))
    assert found.total("update") > 4 * GIB > found.total("rollouts")
    with pytest.raises(ValueError, match=r"^WorldModelSFT needs \d+\.\d GiB during an update, .* lower model\.init_args\.max_tokens") as error:  # fmt: skip
        found.check()
    assert "\n" not in str(error.value)
    replace(found, hardware=Hardware("cuda", found.total("update"))).check()


def test_adapters_need_moments_of_their_own_alone(tiny_model: Path) -> None:
    whole, adapted = (
        measure(make(WorldModelSFT, model=str(tiny_model), **s), False) for s in ({}, {"lora": LoRA(2)})
    )
    assert adapted.moments == 2 * adapted.gradients
    assert adapted.gradients < whole.gradients / 4
    assert (whole.head_trained, adapted.head_trained) == (True, False)
    assert adapted.activations.stored > 0


@pytest.mark.heavy
def test_a_run_prints_its_plan_and_is_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, tiny_model)
    with monkeypatch.context() as patch:
        patch.setattr("rwml_lightning.preflight.machine_memory", lambda: 0.5 * GIB)
        line = error_of(["fit", "--config", str(config)], capsys)
    assert "WorldModelGRPO needs" in line
    assert "this machine has for each of its processes 0.5" in line
    assert not (tmp_path / "runs").exists()
    monkeypatch.delenv("RWML_MEMORY", raising=False)
    main(["fit", "--config", str(config)])
    printed = capsys.readouterr().err
    assert "Memory of a process in GiB: WorldModelGRPO" in " ".join(printed.split())
    assert "activations" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("setting", ["float32", "bfloat16, int8 moments"])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_a_process_takes_what_the_plan_says(setting: str, checkpointing: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=4096, num_key_value_heads=2, **shape)).save_pretrained(tmp_path)
    case = json.dumps([str(tmp_path), checkpointing, 2048, setting])
    environment = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["env", *(f"{k}={v}" for k, v in environment.items()), sys.executable, str(ROOT / "benchmarks/memory_plan.py"), "--case", case],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned_kept"] == pytest.approx(found["measured_kept"], rel=0.05)
    assert found["planned_activations"] == pytest.approx(found["measured_activations"], rel=0.3)
