"""Tiny random models of every causal architecture of transformers, and checks of the trainer on them.

Run as a program, it checks all architectures and rewrites the table of docs/models.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import rwml_lightning
from rwml_lightning.functional import logprobs_from_logits, micro_batches, packed_logprobs
from rwml_lightning.generation import HFGenerator
from rwml_lightning.models import load_causal_lm
from rwml_lightning.modules import LoRA
from rwml_lightning.modules.exporting import export_policy
from rwml_lightning.modules.loading import load_policy
from rwml_lightning.schema import Sampling

DOC = Path(__file__).parents[2] / "docs" / "models.md"
MARK = "<!-- table -->\n"
PACKAGE = Path(rwml_lightning.__file__).parent
VOCABULARY = 61
LAYERS = 4
WINDOW = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 8,
    "generator_hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "max_position_embeddings": 512,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,
    "index_topk": WINDOW,
}
LATENT = {"num_key_value_heads": 4}  # multi-head latent attention has no shared key heads
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
CONVOLUTION = {"layer_types": ["conv", "full_attention"] * 2}
HYBRID = {"layers_block_type": ["linear_attention", "hybrid"] * 2, "use_mamba_kernels": False}
HEADS = {"decoder_attention_heads": 4, "encoder_attention_heads": 4}
INDEXED = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 4,
}  # fmt: skip
HINTS: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "axk2": LATENT,
    "bamba": MAMBA,
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "granitemoehybrid": MAMBA,
    "kimi_linear": LATENT | {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": CONVOLUTION,
    "lfm2_moe": CONVOLUTION,
    "longcat_flash": LATENT | {"num_layers": 2, "zero_expert_num": 2, "expert_ffn_hidden_size": 16, "moe_topk": 2, "ffn_hidden_size": 48},
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 1},
    "minicpm3": LATENT,
    "plbart": HEADS,
    "qwen4_exp_text": INDEXED,
    "vaultgemma": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "whisper": HEADS,
    "youtu": LATENT | {"tie_word_embeddings": False},
    "zamba": HYBRID | {"mamba_d_state": 8, "n_mamba_heads": 2},
    "zamba2": HYBRID | {"mamba_d_state": 8, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
NOT_BUILT = {
    "blt": "reads bytes in patches, through four models",
    "gemma3n": "needs timm for its images; the text model is `gemma3n_text`",
    "gemma4_assistant": "drafts for another model",
    "gemma4_unified_assistant": "drafts for another model",
    "got_ocr2": "an image model",
    "musicgen": "an audio model",
    "musicgen_melody": "an audio model",
    "reformer": "its hashed attention does not take tiny sizes",
}
"""Reasons why some kinds have no tiny model."""
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "llama, dynamic RoPE": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, "max_position_embeddings": 64},
    ),
    "phi3, LongRoPE": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64, "sliding_window": None},
    ),
}  # fmt: skip
"""Kinds and settings of further architectures of a kind."""
CASES = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS)
REASONS = {
    r"takes no position_ids": "takes no position ids",
    r"in train mode its": "random in train mode",
    r"log-probabilities change": "a token depends on its neighbours in a row",
    r"forward pass fails": "its forward pass takes no tree mask",
    r"has no causal language model": "no language model without its other parts",
    r"longer than this model's (\w+)": r"`\1`",
    r"adapters on (\S+) cannot be merged": r"adapters on `\1` cannot be merged",
    r"HFGenerator cannot decode": "layers with a state or index of their own",
}
"""Patterns of error messages, and the words of the table for each."""
TOKENS = torch.randint(3, VOCABULARY, (400,), generator=torch.Generator().manual_seed(5)).tolist()
STEM = TOKENS[:7]
SHORT = [
    [*STEM, 12, 13, 14],
    [*STEM, 12, 13, 15, 16],
    [*STEM, 12, 13, 14],
    [*STEM[:3], 20, 21],
    [25, 26],
    [*STEM, 17],
]
LONG = [
    TOKENS[:150], [*TOKENS[:100], *TOKENS[160:230]], TOKENS[230:300], [*TOKENS[:150], *TOKENS[300:340]], TOKENS[200:210],
]  # fmt: skip
PROMPTS = [TOKENS[:12], TOKENS[20:23], TOKENS[100:130]]
TOLERANCE = 1e-4  # for log-probabilities in nats, logits, and gradients relative to the largest; measured differences are near 1e-6


class Row(NamedTuple):
    """Result of the checks of an architecture.

    Args:
        training: ``equal``, with the config key that limits the sequence length if there is one, or the reason of the
            refusal.
        lora: The same for adapters on all linear layers.
        generation: The same for :class:`HFGenerator`.
    """

    training: str
    lora: str = ""
    generation: str = ""


class NoTokenizer:
    """Replace the tokenizer of an export, and write no file."""

    def save_pretrained(self, folder: Path) -> None:
        pass


def tiny_model(case: str) -> PreTrainedModel:
    """Make a model with random float32 weights, and change norms and persistent buffers, so that their loss is detected.

    The attention is transformers' eager one, which is the reference for the faster ones.
    """
    kind, changes = VARIANTS.get(case, (case, {}))
    config_class = CONFIG_MAPPING[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config_class(**tiny_arguments(config_class) | changes),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in parameters and tensor.ndim > 1:
                tensor.normal_(std=0.15)
            elif tensor.is_floating_point():
                tensor.add_(
                    0.2 * torch.randn_like(tensor) if name in parameters else 0.2 * torch.rand_like(tensor)
                )
    return model.eval()


def tiny_arguments(config_class: Any) -> dict[str, Any]:
    """Select the :data:`SIZES` and :data:`HINTS` of a config, under its own names of arguments; sub-configs likewise."""
    if dataclasses.is_dataclass(config_class):
        taken = {field.name for field in dataclasses.fields(config_class)}
    else:
        taken = set(inspect.signature(config_class.__init__).parameters)
    spelt = {config_class.attribute_map.get(name, name): size for name, size in SIZES.items()}
    arguments = {name: size for name, size in spelt.items() if name in taken}
    parts = {
        name: tiny_arguments(part)
        for name, part in config_class.sub_configs.items()
        if hasattr(part, "model_type")
    }
    return arguments | parts | HINTS.get(config_class.model_type, {})


def examine(case: str, folder: Path) -> Row:
    """Check which parts give equal results and which raise a clear error.

    Raises:
        AssertionError: A part works, but its results differ.
        Exception: A part fails without a one-line ValueError of the package.
    """
    if case in NOT_BUILT:
        return Row(f"not tried: {NOT_BUILT[case]}")
    model, source = tiny_model(case), folder / "model"
    model.save_pretrained(source)
    loaded: list[nn.Module] = []
    refused = refusal(lambda: loaded.append(load_policy(str(source))))
    if refused:
        return Row(f"refused: {refused}")
    (policy,) = loaded
    torch.testing.assert_close(logits_of(policy), logits_of(model), atol=TOLERANCE, rtol=0)
    check_packing(policy, SHORT)
    bound = refusal(lambda: check_packing(policy, LONG))
    check_export(policy, folder / "export")
    lora = refusal(lambda: check_lora(source, folder / "lora"))
    generation = refusal(lambda: check_generation(policy.eval()))
    return Row(
        f"equal up to {bound}" if bound else "equal",
        f"refused: {lora}" if lora else "equal",
        f"refused: {generation}" if generation else "equal",
    )


def refusal(check: Callable[[], object]) -> str:
    """Run a check; return the table's words for a ValueError of the package, or "" if the check passes."""
    try:
        check()
    except ValueError as error:
        ours = Path(traceback.extract_tb(error.__traceback__)[-1].filename).is_relative_to(PACKAGE)
        if not ours or "\n" in str(error):
            raise
        for pattern, words in REASONS.items():
            if found := re.search(pattern, str(error)):
                return found.expand(words)
        raise
    return ""


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model.eval()(input_ids=torch.tensor([TOKENS[:30]]), use_cache=False).logits


def logprobs_alone(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Compute log-probabilities of all tokens except each sequence's first, with a separate forward pass per sequence."""
    return torch.cat([
        logprobs_from_logits(
            model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, :-1], torch.tensor(sequence[1:])
        ).logprobs
        for sequence in sequences
    ])  # fmt: skip


def check_packing(policy: nn.Module, sequences: Sequence[Sequence[int]]) -> None:
    """Compare values and gradients of packed sequences with those of each sequence alone."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    (micro,) = micro_batches(sequences, [1] * len(sequences), max_tokens=10_000)
    packed, alone = packed_logprobs(policy.train(), micro).logprobs, logprobs_alone(policy.eval(), sequences)
    torch.testing.assert_close(packed, alone, atol=TOLERANCE, rtol=0)
    weights = torch.randn(len(alone), generator=torch.Generator().manual_seed(3))
    ours, expected = (
        torch.autograd.grad((weights * values).sum(), parameters, allow_unused=True)
        for values in (packed, alone)
    )
    largest = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    for ours_, expected_ in zip(ours, expected, strict=True):
        assert (ours_ is None) == (expected_ is None)
        if ours_ is not None:
            torch.testing.assert_close(ours_, expected_, atol=TOLERANCE * largest, rtol=0)


def check_export(policy: nn.Module, folder: Path) -> None:
    """Export the policy, load the export, and compare their logits."""
    expected = logits_of(policy)
    export_policy(policy, NoTokenizer(), folder, TOKENS[:30])
    torch.testing.assert_close(logits_of(load_causal_lm(folder)), expected, atol=TOLERANCE, rtol=0)


def check_lora(source: Path, folder: Path) -> None:
    """Check the export of a policy with adapters that change its logits."""
    policy: Any = load_policy(str(source), lora=LoRA(rank=2, alpha=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    with policy.disable_adapter():
        before = logits_of(policy)
    assert (logits_of(policy) - before).abs().max() > 0.1
    check_export(policy, folder)


@torch.no_grad()
def check_generation(model: Any, new_tokens: int = 20) -> None:
    """Compare greedy completions with transformers' generate, and log-probabilities with a plain forward pass."""
    generator = HFGenerator(end_token_ids=(), max_model_len=SIZES["max_position_embeddings"])
    generator.attach(model)
    groups = generator.generate(PROMPTS, Sampling(new_tokens, temperature=0.0), [[0, 1]] * len(PROMPTS))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()  # fmt: skip
        for completion in group:
            assert list(completion.token_ids) == expected
            alone = logprobs_alone(model, [[*prompt, *expected]])[len(prompt) - 1 :]
            torch.testing.assert_close(torch.tensor(completion.logprobs), alone, atol=TOLERANCE, rtol=0)


def documented() -> dict[str, Row]:
    """Read the rows of docs/models.md."""
    table = DOC.read_text().split(MARK)[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {kind.strip("`"): Row(*row) for kind, _, *row, _ in cells}


def documented_engine() -> dict[str, str]:
    """Read from docs/models.md, by class, whether vLLM implements it."""
    table = DOC.read_text().split(MARK)[1]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    return {row[1].strip("`"): row[-1] for row in cells}


def class_name(case: str) -> str:
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[VARIANTS.get(case, (case, {}))[0]]


def write_table() -> None:
    from vllm import ModelRegistry

    known = set(ModelRegistry.get_supported_archs())
    rows = ["| kind | class | training | LoRA | HFGenerator | vLLM |", "|---|---|---|---|---|---|"]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = examine(case, Path(folder))
        engine = "yes" if class_name(case) in known else "no"
        rows.append("| " + " | ".join((f"`{case}`", f"`{class_name(case)}`", *row, engine)) + " |")
        print(rows[-1], flush=True)
    before, _, after = DOC.read_text().split(MARK)
    DOC.write_text(before + MARK + "\n".join(rows) + "\n" + MARK + after)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write_table()
