"""Pure functions on tensors, the building blocks of the trainers."""

from rwml_lightning.functional.advantages import (
    Normalisation,
    discounted_returns,
    group_advantages,
    step_advantages,
)
from rwml_lightning.functional.attention import has_tree_attention, use_tree_attention
from rwml_lightning.functional.changed_scalars import count_changed
from rwml_lightning.functional.checkpointing import Checkpointing, checkpointing_arguments
from rwml_lightning.functional.digest import combine_digests, digesting, tensor_digest
from rwml_lightning.functional.kl import Estimator, kl_penalty
from rwml_lightning.functional.logprobs import TokenLogprobs, chunked_logprobs, logprobs_from_logits
from rwml_lightning.functional.losses import (
    ImportanceWeights,
    Normaliser,
    Surrogate,
    clipped_surrogate,
    token_weights,
    truncated_importance_weights,
)
from rwml_lightning.functional.packed import packed_logprobs, plain_logprobs, verify_packing
from rwml_lightning.functional.prefix_tree import (
    MicroBatch,
    PrefixTree,
    build_tree,
    micro_batches,
    padding_micro_batch,
)

__all__ = [
    "Checkpointing",
    "Estimator",
    "ImportanceWeights",
    "MicroBatch",
    "Normalisation",
    "Normaliser",
    "PrefixTree",
    "Surrogate",
    "TokenLogprobs",
    "build_tree",
    "checkpointing_arguments",
    "chunked_logprobs",
    "clipped_surrogate",
    "combine_digests",
    "count_changed",
    "digesting",
    "discounted_returns",
    "group_advantages",
    "has_tree_attention",
    "kl_penalty",
    "logprobs_from_logits",
    "micro_batches",
    "packed_logprobs",
    "padding_micro_batch",
    "plain_logprobs",
    "step_advantages",
    "tensor_digest",
    "token_weights",
    "truncated_importance_weights",
    "use_tree_attention",
    "verify_packing",
]
