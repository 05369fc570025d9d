"""A generator for machines without vLLM: it decodes with the trainer's module or with a copy of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rwml_lightning.functional import combine_digests, tensor_digest
from rwml_lightning.generation.base import SeparateWeights, check_prompts
from rwml_lightning.models import end_token_ids as model_end_token_ids
from rwml_lightning.models import load_causal_lm
from rwml_lightning.schema import Completion, Sampling
from rwml_lightning.weights import base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HFGenerator(SeparateWeights):
    """Decodes with a Hugging Face causal model in this process; see :mod:`rwml_lightning.generation.group_decoding`.

    After :meth:`attach` it uses the trainer's module: there is no second copy of the weights and no transfer. Otherwise
    it loads the model by name.

    Args:
        model: Model name, as in :func:`rwml_lightning.models.resolve_model`; not needed if a module is attached.
        dtype: Dtype of a loaded model.
        device: Device of a loaded model; ``auto`` is the first GPU, or the CPU if there is none.
        max_model_len: Maximum number of tokens of a prompt and its completion together; default: the limit of the
            model.
        max_num_seqs: Maximum number of completions decoded at the same time; the others wait.
        end_token_ids: Ids of the tokens that end a completion; default: the end tokens of the model.
        share_weights: Whether to decode with the trainer's module. A sharded module cannot decode.
    """

    def __init__(
        self,
        model: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 128,
        end_token_ids: Sequence[int] | None = None,
        share_weights: bool = True,
    ) -> None:
        self.model = model
        self.dtype = dtype
        self.device = device
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self.end_token_ids = end_token_ids
        self.share_weights = share_weights
        self.policy_version = 0
        self.weights_digest: str | None = None
        self._module: PreTrainedModel | None = None
        self._attached = False

    def attach(self, policy: nn.Module) -> bool:
        """Decode with this module, including its LoRA adapters (PEFT), instead of a loaded copy, unless it is sharded."""
        if not self.share_weights or any(isinstance(weight, DTensor) for weight in policy.parameters()):
            return False
        # The base model of a PEFT model contains the adapters; the forward method of PEFT only wraps it.
        self._module = base_model(policy)
        self._attached = True
        self.weights_digest = None  # the module's weights change without an update
        return True

    def detach(self) -> None:
        if self._attached:
            self.close()

    @property
    def weights_dtype(self) -> str:
        return str(self._started().dtype).removeprefix("torch.")

    def start(self) -> None:
        if self._module is not None:
            return
        if self.model is None:
            raise ValueError("HFGenerator has no model: set model, or attach the trainer's module")
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        module = load_causal_lm(self.model, self.dtype).eval()
        module.to(device)
        self._module = module

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion]]:
        from rwml_lightning.generation.group_decoding import check_decodable, decode_groups, decoding_mode

        module = self._started()
        check_prompts(prompts, seeds, sampling, self._context(module))
        completions: list[list[Completion]] = [[] for _ in prompts]
        by_length = sorted(
            (index for index in range(len(prompts)) if seeds[index]), key=lambda i: len(prompts[i])
        )
        if not by_length:
            return completions
        check_decodable(module, len(prompts[by_length[-1]]) + sampling.max_tokens)
        end_tokens = self._end_tokens(module)
        with decoding_mode(module):
            for batch in self._batches(by_length, seeds):
                decoded = decode_groups(
                    module,
                    [prompts[index] for index in batch],
                    [seeds[index] for index in batch],
                    sampling,
                    end_tokens,
                    self.policy_version,
                )
                for index, group in zip(batch, decoded, strict=True):
                    completions[index] = group
        return completions

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from rwml_lightning.generation.group_decoding import decoding_mode

        module = self._started()
        scores = []
        with decoding_mode(module):
            for sequence in sequences:
                ids = torch.tensor([list(sequence)], device=module.device)
                logprobs = module(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
                scores.append(logprobs.gather(-1, ids[0, 1:, None])[:, 0].tolist())
        return scores

    def update_weights(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replace the weights as in the protocol; an attached module has them already, so only the version is set."""
        if not self._attached:
            weights = self._started().state_dict()
            missing = {tensor.data_ptr(): name for name, tensor in weights.items()}
            self.weights_digest, digests = None, []
            for name, tensor in named_tensors:
                if name not in weights:
                    raise ValueError(f"weight update: the model has no tensor {name!r}")
                copied = weights[name].copy_(tensor)
                digests.append(tensor_digest(name, copied if copied.dtype == tensor.dtype else tensor))
                missing.pop(copied.data_ptr(), None)
            if missing:
                raise ValueError(
                    f"weight update: {len(missing)} tensors are missing, for example {next(iter(missing.values()))!r}"
                )
            self.weights_digest = combine_digests(digests)
        self.policy_version = version

    def close(self) -> None:
        self._module = None
        self._attached = False
        self.weights_digest = None

    def _started(self) -> PreTrainedModel:
        self.start()
        assert self._module is not None
        return self._module

    def _context(self, module: PreTrainedModel) -> int:
        of_model = getattr(module.config.get_text_config(), "max_position_embeddings", None)
        limits = [limit for limit in (self.max_model_len, of_model) if limit is not None]
        if not limits:
            raise ValueError(
                f"the config of {type(module).__name__} has no max_position_embeddings: set max_model_len"
            )
        return min(limits)

    def _end_tokens(self, module: PreTrainedModel) -> Sequence[int]:
        if self.end_token_ids is None:
            if self.model is not None:
                self.end_token_ids = model_end_token_ids(self.model)
            else:
                config = module.generation_config or module.config
                eos = config.eos_token_id
                self.end_token_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return self.end_token_ids

    def _batches(self, indices: Sequence[int], seeds: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Split prompts into batches of at most ``max_num_seqs`` completions; a larger prompt is a batch by itself."""
        batch: list[int] = []
        size = 0
        for index in indices:
            if batch and size + len(seeds[index]) > self.max_num_seqs:
                yield batch
                batch, size = [], 0
            batch.append(index)
            size += len(seeds[index])
        yield batch
