"""A generator with the vLLM engine, which runs in separate processes, on CPU or GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from rwml_lightning.functional import combine_digests
from rwml_lightning.generation.base import SeparateWeights, UnsupportedAdaptersError, check_prompts
from rwml_lightning.generation.engine_process import EngineProcess
from rwml_lightning.generation.vllm_adapters import Adapters, adapters_of, check_dtype
from rwml_lightning.generation.vllm_setup import check_positions, engine_environment, load_engine
from rwml_lightning.generation.weight_files import write_adapter_folder, write_weight_files
from rwml_lightning.models import causal_config, resolve_model
from rwml_lightning.models import end_token_ids as model_end_token_ids
from rwml_lightning.schema import Completion, Sampling

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

_T = TypeVar("_T")
log = logging.getLogger(__name__)


class VLLMGenerator(SeparateWeights):
    """Samples with vLLM. Weight updates replace the weights in place.

    The constructor does not start the engine; :meth:`start` or the first use does. A script that uses this class must
    guard its main part with ``if __name__ == "__main__"``, because the processes of the engine import the script.

    Args:
        model: Model name, as in :func:`rwml_lightning.models.resolve_model`; the command line sets it to the model of
            the policy.
        tensor_parallel_size: Number of GPUs that share one copy of the model.
        dtype: Dtype of weights and activations; ``auto`` is the dtype of the model on a GPU and float32 on a CPU. There
            float32 agrees with the trainer and, without AVX-512 or AMX, is also faster.
        max_model_len: Maximum number of tokens of a prompt and its completion together; default: the limit of the
            model.
        gpu_memory_utilization: Share of the GPU memory for weights and key-value cache. The trainer needs the rest.
        kv_cache_gib: Size of the key-value cache in GiB. The default on a CPU is 2 (or ``VLLM_CPU_KVCACHE_SPACE``), on
            a GPU the memory that ``gpu_memory_utilization`` leaves.
        max_num_seqs: Maximum number of completions decoded at the same time; the others wait.
        block_size: Number of tokens in a block of the key-value cache. A group shares only whole blocks of its prompt.
        enforce_eager: Whether to skip compilation, for a faster start and slower decoding.
        startup_timeout_s: Time limit in seconds for loading, compilation and warm-up.
        request_timeout_s: Time limit in seconds for one call of ``generate``, ``score`` or ``update_weights``.
        seed: Seed of the engine. Each sample has a separate seed.
        end_token_ids: Ids of the tokens that end a completion; default: the end tokens of the model.
        enable_sleep_mode: Whether the engine leaves the GPU's memory to the trainer during an update. It starts again with
            the next weights. On a CPU there is no such mode.
        merge_adapters: Whether an update of a policy with LoRA sends the whole model with merged adapters. By default the
            engine keeps the base weights and takes the adapters alone, if vLLM supports them.
    """

    def __init__(
        self,
        model: str | None = None,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.4,
        kv_cache_gib: float | None = None,
        max_num_seqs: int = 128,
        block_size: int | None = None,
        enforce_eager: bool = False,
        startup_timeout_s: float = 900.0,
        request_timeout_s: float = 1800.0,
        seed: int = 0,
        end_token_ids: Sequence[int] | None = None,
        enable_sleep_mode: bool = False,
        merge_adapters: bool = False,
    ) -> None:
        self.model = model
        self.tensor_parallel_size = tensor_parallel_size
        self.dtype = dtype
        self.max_model_len = max_model_len
        self.gpu_memory_utilization = gpu_memory_utilization
        self.kv_cache_gib = kv_cache_gib
        self.max_num_seqs = max_num_seqs
        self.block_size = block_size
        self.enforce_eager = enforce_eager
        self.startup_timeout_s = startup_timeout_s
        self.request_timeout_s = request_timeout_s
        self.seed = seed
        self.end_token_ids = end_token_ids
        self.enable_sleep_mode = enable_sleep_mode
        self.merge_adapters = merge_adapters
        self.asleep = False
        self.policy_version = 0
        self.weights_digest: str | None = None
        self.base_digest: str | None = None
        self._adapters: Adapters | None = None
        self._num_adapters = 0
        self._lora_request: LoRARequest | None = None
        self._llm: LLM | None = None
        self._process: EngineProcess | None = None

    def _model_name(self) -> str:
        if self.model is None:
            raise ValueError("VLLMGenerator has no model: set model")
        return self.model

    @property
    def weights_dtype(self) -> str:
        self.start()
        assert self._llm is not None
        return str(self._llm.model_config.dtype).removeprefix("torch.")

    def start(self) -> None:
        if self._llm is not None:
            return
        folder = resolve_model(self._model_name())
        check_positions(causal_config(folder), self.max_model_len)
        if self.end_token_ids is None:
            self.end_token_ids = model_end_token_ids(folder)
        process = EngineProcess()
        with engine_environment(self.tensor_parallel_size == 1):
            self._llm = process.start(lambda: self._load(folder), self.startup_timeout_s)
        self._process = process
        trainer, engine = os.getpid(), process.pid
        self._call("watching the trainer", lambda llm: llm.collective_rpc("end_with", args=(trainer, engine)))

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        self.start()
        assert self._llm is not None
        check_prompts(prompts, seeds, sampling, self._llm.model_config.max_model_len)
        requests = [(prompt, seed) for prompt, group in zip(prompts, seeds, strict=True) for seed in group]
        params = [self._sampling_params(sampling, seed) for _, seed in requests]
        outputs = iter(self._run("generate", [prompt for prompt, _ in requests], params))
        return [[self._completion(next(outputs)) for _ in group] for group in seeds]

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        scores = []
        for sequence, output in zip(
            sequences, self._run("score", sequences, [params] * len(sequences)), strict=True
        ):
            assert output.prompt_logprobs is not None
            rows = zip(sequence[1:], output.prompt_logprobs[1:], strict=True)
            scores.append([row[token].logprob for token, row in rows if row is not None])
        return scores

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.start()
        self.weights_digest = self.base_digest = self._lora_request = None
        with self._updating(), ExitStack() as files:
            paths = write_weight_files(named_tensors, files)
            folder = str(resolve_model(self._model_name()))
            digests = self._call(
                "update_weights", lambda llm: llm.collective_rpc("load_weight_files", args=(folder, paths))
            )
        self._finish_update(digests)
        self.weights_digest = self.base_digest = digests[0]
        self.policy_version = version

    def keep_adapters(self, policy: nn.Module) -> bool:
        if self.merge_adapters:
            return False
        try:
            check_dtype(self.dtype)
            adapters = adapters_of(policy)
        except UnsupportedAdaptersError as error:
            self.refuse_adapters(str(error))
            return False
        if adapters is None:
            return False
        if adapters != self._adapters:
            self.close()  # vLLM reserves memory for adapters when it starts
            self._adapters = adapters
        try:
            self.start()
        except RuntimeError as error:
            self.refuse_adapters(str(error))
        return not self.merge_adapters

    def refuse_adapters(self, reason: str) -> None:
        log.warning(
            "vLLM gets the policy with merged adapters, because it cannot take them alone: %s", reason
        )
        if self._adapters is not None:
            self.close()  # an engine for adapters decodes more slowly
        self.merge_adapters, self._adapters = True, None

    def update_adapters(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        from vllm.lora.request import LoRARequest

        self.start()
        assert self._adapters is not None
        self.weights_digest = None
        self._num_adapters += 1
        number, config = self._num_adapters, self._adapters.config
        with self._updating(), ExitStack() as files:
            folder = write_adapter_folder(named_tensors, config, files)
            took = self._call(
                "update_adapters", lambda llm: llm.collective_rpc("load_adapters", args=(folder, number))
            )
        # A request names the adapters that it needs. If the engine does not have them, it fails.
        self._lora_request = LoRARequest(f"policy-{number}", number, folder)
        self._finish_update([digest for digest, _ in took])
        for _, reason in took:
            if reason:
                raise UnsupportedAdaptersError(reason)
        if self.base_digest is not None:
            self.weights_digest = combine_digests([int(self.base_digest, 16), int(took[0][0], 16)])
        self.policy_version = version

    @contextmanager
    def _updating(self) -> Iterator[None]:
        """Wake the engine for an update. If the update fails, end the engine, which may have new and old weights."""
        try:
            if self.asleep:
                torch.cuda.empty_cache()  # the trainer's unused blocks would leave too little
                self._call(
                    "wake_up", lambda llm: llm.wake_up(tags=["weights"])
                )  # the cache follows, when the files are gone
            yield
        except BaseException:
            self.close()
            raise

    def _finish_update(self, digests: Sequence[str]) -> None:
        if self.asleep:
            self._call("wake_up", lambda llm: llm.wake_up(tags=["kv_cache"]))
            self.asleep = False
        if len(set(digests)) != 1:
            self.close()
            raise RuntimeError("vLLM's workers did not all take the same weights; the engine was ended")
        self.reset_prefix_cache()

    def sleep(self) -> None:
        """Discard the cache, and free the GPU's memory, if ``enable_sleep_mode`` is set.

        The next update brings all weights, so they are discarded (level 2). With adapters it does not bring the base, which
        waits in the memory of the machine (level 1).
        """
        can = self._llm is not None and self._llm.model_config.enable_sleep_mode
        if can and not self.asleep:
            level = 2 if self._adapters is None else 1
            self._call("sleep", lambda llm: llm.sleep(level=level))
            self.asleep, self.weights_digest = True, None
            self.base_digest = self.base_digest if level == 1 else None

    def reset_prefix_cache(self) -> None:
        """Drop the cached prefixes; after a weight update they are keys and values of the old weights."""
        if not self._call("reset_prefix_cache", lambda llm: llm.reset_prefix_cache()):
            self.close()
            raise RuntimeError("vLLM did not drop its prefix cache; the engine was ended")

    def close(self) -> None:
        if self._process is not None:
            llm = self._llm
            self._process.end(None if llm is None else lambda: llm.llm_engine.engine_core.shutdown())
        self._llm = self._process = None
        self.asleep = False
        self.weights_digest = self.base_digest = self._lora_request = None

    def _load(self, folder: Path) -> LLM:
        return load_engine(
            folder,
            self.dtype,
            self.kv_cache_gib,
            self.enable_sleep_mode,
            tensor_parallel_size=self.tensor_parallel_size,
            max_model_len=self.max_model_len,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_num_seqs=self.max_num_seqs,
            block_size=self.block_size,
            enforce_eager=self.enforce_eager,
            seed=self.seed,
            **(self._adapters.engine_arguments if self._adapters is not None else {}),
        )

    def _sampling_params(self, sampling: Sampling, seed: int) -> SamplingParams:
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            logprobs=0,
            stop_token_ids=list(self.end_token_ids or ()),
            ignore_eos=True,  # only the stop tokens above end a completion
            detokenize=False,
        )

    def _run(
        self, what: str, prompts: Sequence[Sequence[int]], params: list[SamplingParams]
    ) -> list[RequestOutput]:
        if not prompts:
            return []
        from vllm import TokensPrompt

        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        request = self._lora_request
        return self._call(
            what, lambda llm: llm.generate(inputs, params, use_tqdm=False, lora_request=request)
        )

    def _call(self, what: str, call: Callable[[LLM], _T]) -> _T:
        self.start()
        llm, process = self._llm, self._process
        assert llm is not None
        assert process is not None
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return process.call(what, lambda: call(llm), self.request_timeout_s)
        except EngineDeadError as error:
            process.end()
            raise RuntimeError(
                f"the vLLM engine failed during {what}; its error messages are above"
            ) from error
        finally:
            if not process.alive:
                self.close()

    def _completion(self, output: RequestOutput) -> Completion:
        sample = output.outputs[0]
        rows = cast("list[dict[int, Any]]", sample.logprobs)
        return Completion(
            token_ids=tuple(sample.token_ids),
            logprobs=tuple(row[token].logprob for token, row in zip(sample.token_ids, rows, strict=True)),
            finish_reason="stop" if sample.finish_reason == "stop" else "length",
            policy_version=self.policy_version,
        )
