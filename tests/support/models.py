"""Tiny language models, tokenizers and embedders as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rwml_lightning.answers import format_answer
from rwml_lightning.prompts.chat_format import ChatFormat
from rwml_lightning.prompts.next_state import encode_answer
from rwml_lightning.schema import Transition
from support.worlds import ACTION_PROMPT, make_world


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer without a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


def write_tiny_model(
    folder: Path, transitions: Sequence[Transition], vocabulary: int, **shape: int
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Write an untrained Llama and a tokenizer of the transitions' texts as a Hugging Face folder."""
    texts = [text for t in transitions for text in (t.action, format_answer(t.next_state))]
    tokenizer = train_tokenizer(texts, vocabulary)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        **{**sizes, **shape},
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def teach(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    transitions: Sequence[Transition],
    num_steps: int,
) -> None:
    """Train the model on the answers with SFT, on one batch of all answers at each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    chat = ChatFormat(tokenizer)
    prompts = [ACTION_PROMPT.encode(chat, t) for t in transitions]
    pairs = [
        (ids, encode_answer(chat, ids, t.next_state)) for ids, t in zip(prompts, transitions, strict=True)
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(pairs):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    for _ in range(num_steps):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def write_tiny_embedder(
    folder: Path, max_pieces: int = 16, default_prompt: str | None = None, normalised: bool = False
) -> Path:
    """Write an untrained sentence-transformers model with one token per letter; vectors have norm 1 only if ``normalised``."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    source = folder / "transformer"
    letters = [chr(code) for code in range(33, 127)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    source.mkdir(parents=True)
    (source / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizerFast(str(source / "vocab.txt"), do_lower_case=False).save_pretrained(source)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(pieces), max_position_embeddings=64, initializer_range=1.0, **shape)
    BertModel(config).save_pretrained(source)
    modules = [Transformer(str(source), max_seq_length=max_pieces), Pooling(16), *[Normalize()] * normalised]
    prompts = {} if default_prompt is None else {"prompts": {"p": default_prompt}, "default_prompt_name": "p"}
    SentenceTransformer(modules=modules, device="cpu", **prompts).save(str(folder / "embedder"))
    return folder / "embedder"


def write_taught_model(folder: Path) -> Path:
    """Write a Llama of 2 layers x 32 that answers bare actions in the right form, some of them correctly."""
    world = make_world()
    model, tokenizer = write_tiny_model(folder, world, vocabulary=340)
    teach(model, tokenizer, [t for t in world if t.split == "train"], num_steps=60)
    model.save_pretrained(folder)
    return folder
