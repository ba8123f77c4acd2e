"""A transformer of 4,000 parameters and sentences for it, as people have them in folders and files."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ("the", "film", "was", "good", "bad", "long", "short", "very", "and", "not")


def save_encoder(folder: Path, seed: int = 0) -> None:
    """A small BERT with a tokenizer of few words, as transformers saves them."""
    torch.manual_seed(seed)
    vocabulary = {word: n for n, word in enumerate(("[PAD]", "[UNK]", *WORDS))}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    # Without dropout, which is another on each number of ranks.
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **sizes, **no_dropout)
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


def write_texts(path: Path) -> None:
    """200 sentences, whose label is whether they say "good"."""
    draw = np.random.default_rng(0)
    lines = ["text,label"]
    for n in range(200):
        words = list(draw.choice([word for word in WORDS if word not in ("good", "bad")], draw.integers(2, 8)))
        words.insert(int(draw.integers(0, len(words))), "good" if n % 2 else "bad")
        lines.append(f"{' '.join(words)},{'yes' if n % 2 else 'no'}")
    path.write_text("\n".join(lines))
