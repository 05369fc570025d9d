"""What several tests share: a world of a few sentences, a tiny language model that can be taught it, a quick reward."""

from __future__ import annotations

import os
import signal
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rwml_lightning.answers import format_answer
from rwml_lightning.data.chat_format import ChatFormat
from rwml_lightning.data.prompts import WorldModelPrompt, encode_answer
from rwml_lightning.data.transitions import write_transitions
from rwml_lightning.rewards import EmbeddingReward
from rwml_lightning.schema import Transition

ACTION_PROMPT = WorldModelPrompt(history_turns=0, system="", user="{action}")
VERBS = {
    "take": "You take the {}.",
    "open": "The {} is open.",
    "clean": "The {} shines.",
    "push": "It moves.",
}
HOSTILE = (
    "\x1b]52;c;cm0gLXJm\x07 \x1b]0;title\x1b\\ \x1b[31;5m \x9b2J \x9d0;t\x9c \x00 \x08 \x7f \r \t "
    "\u202eevil\u2066 \u2028 \ud800 [@click=app.quit]x[/] [bold]b [link=https://example.org]l [/] [/nonsense] \\[ :bomb: \\"
)
"""What a terminal, rich or Textual would obey: clipboard, title, colours, C1 controls, text direction, links, actions, markup."""
OBJECTS = ("apple", "bowl", "desk", "lamp", "mug", "pan", "safe", "sofa", "cup", "pen")


def assert_harmless(shown: str) -> None:
    """Nothing of :data:`HOSTILE` that a terminal would obey stands in a text."""
    odd = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set(
        "\n\u200c\u200d"
    )
    assert not odd, sorted(odd)


def make_transition(number: int = 0, **changes: Any) -> Transition:
    """A transition with distinct texts."""
    fields: dict[str, Any] = {
        "transition_id": f"t{number}",
        "environment": "test",
        "game": f"g{number}",
        "task": "tidy up",
        "history": (),
        "observation": f"You are in room {number}.",
        "action": f"go to door {number}",
        "next_state": f"You stand at door {number}.",
    }
    return Transition(**{**fields, **changes})


def make_world() -> list[Transition]:
    """Forty transitions of four verbs; those of the last two objects are held out."""
    return [
        make_transition(
            transition_id=f"{verb}-{name}",
            game=name,
            action=f"{verb} {name}",
            next_state=answer.format(name),
            kind=verb,
            split="validation" if name in OBJECTS[-2:] else "train",
        )
        for verb, answer in VERBS.items()
        for name in OBJECTS
    ]


def write_config(folder: Path, policy: Path, **changes: Any) -> Path:
    """A run of two steps on :func:`make_world`; see :func:`make_config` for the rest."""
    write_transitions(folder / "t.parquet", make_world())
    return make_config(folder, policy, **changes)


def make_config(folder: Path, policy: str | Path, **changes: Any) -> Path:
    """A run of two steps on the folder's ``t.parquet``; changes go into the section that they name, or are a key."""
    config: dict[str, Any] = {
        "run": {"name": "r", "root": str(folder / "runs")},
        "trainer": {"accelerator": "cpu", "max_steps": 2},
        "model": {
            "class_path": "rwml_lightning.modules.WorldModelGRPO",
            "init_args": {"model": str(policy)},
        },
        "data": {
            "transitions": str(folder / "t.parquet"),
            "generator": {"class_path": "rwml_lightning.generation.HFGenerator"},
            "reward": {"class_path": "rwml_testing.LetterReward"},
            "prompt": {"history_turns": 0, "system": "", "user": "{action}"},
            "sampling": {"max_tokens": 20},
            "prompts_per_step": 4,
            "group_size": 4,
        },
    }
    for section, values in changes.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a chat template."""
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
    """Plain supervised training on the answers, a batch of them all at each step."""
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
    """Write an untrained sentence-transformers model of one piece a letter; its vectors have any length unless normalised."""
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
    """Write a Llama of 2 layers x 32 that writes well-formed answers to bare actions, some of them right."""
    world = make_world()
    model, tokenizer = write_tiny_model(folder, world, vocabulary=340)
    teach(model, tokenizer, [t for t in world if t.split == "train"], num_steps=60)
    model.save_pretrained(folder)
    return folder


class LetterEmbedder:
    """Embeds a text as the counts of its letters: enough like an embedder to be near for near texts."""

    max_seq_length = None

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def encode(self, texts: Sequence[str], **_: Any) -> np.ndarray:
        self.embedded.extend(texts)
        vectors = np.zeros((len(texts), 256), dtype=np.float32)
        for row, text in enumerate(texts):
            for byte in text.encode():
                vectors[row, byte] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


class LetterReward(EmbeddingReward):
    """The embedding reward with :class:`LetterEmbedder` in place of a model."""

    def __init__(self, tau_d: float = 0.1, mode: Any = "threshold", cache_size: int = 100_000) -> None:
        super().__init__("letters", tau_d, mode, cache_size=cache_size)
        self.letters = LetterEmbedder()

    def _load(self) -> Any:
        return self.letters


@dataclass
class KillOnce(L.Callback):
    """Ends the process as ``kill -9`` does, in the middle of a step, unless it has done so before.

    Args:
        step: Optimizer step after whose update, and before whose recording, the process ends.
        mark: File that says it is done.
    """

    step: int
    mark: str

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Batches(L.LightningDataModule):
    """Gives prepared batches, one a step."""

    def __init__(self, batches: Sequence[Any]) -> None:
        super().__init__()
        self.batches = list(batches)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return batch


class Steps(L.Callback):
    """Keeps what each step gave back, and the gradients that its optimizer step used."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.policy.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.outputs.append(outputs)


def fit(module: L.LightningModule, batches: Sequence[Any], **trainer: Any) -> Steps:
    """Train on prepared batches with the real trainer, one optimizer step each."""
    steps = Steps()
    ckpt_path = trainer.pop("ckpt_path", None)
    L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=trainer.pop("enable_checkpointing", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[steps, *trainer.pop("callbacks", [])],
        **trainer,
    ).fit(module, Batches(batches), ckpt_path=ckpt_path, weights_only=True)
    return steps


class Recorder:
    """Keeps what it was called with and gives always the same."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[Any] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append((arguments, named) if named else arguments)
        return self.answer
