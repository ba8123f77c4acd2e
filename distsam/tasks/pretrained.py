"""Sentences, and pretrained transformers that classify them; the one importer of Hugging Face's transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.tasks.labelled import Labelled
from distsam.tasks.tables import read_texts

try:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging
except ImportError as error:
    raise ArgumentError(
        "path", f"transformers is not installed or cannot be imported ({error}); pip install 'distsam[text]'"
    ) from None


def read_sentences(path: str, text: str, label: str, tokenizer: str, max_length: int) -> Labelled:
    """The rows of a table as token ids, filled up with the tokenizer's padding to the longest, and their classes.

    Args:
        path: a CSV, Parquet or Feather file.
        text, label: its columns; labels are any words or integers, sorted.
        tokenizer: folder of a saved model with its tokenizer.
        max_length: tokens after which a text is cut, special ones included.

    Raises:
        ArgumentError: of `path`, `text`, `label` or `tokenizer`, whichever cannot be used; one label alone.
    """
    texts, classes, names = read_texts(path, text, label)
    if len(names) < 2:
        raise ArgumentError("label", f"column {label!r} holds {names[0]!r} alone; there is nothing to tell apart")
    convert: Any = _loaded(AutoTokenizer, tokenizer, "tokenizer")
    if convert.pad_token_id is None:
        raise ArgumentError("tokenizer", f"{tokenizer} has no padding token; take an encoder's")
    tokens = convert(texts, truncation=True, max_length=max_length, padding="longest", return_tensors="np")
    return Labelled(tokens["input_ids"].astype(np.int64), classes, len(names), tuple(map(str, names)))


class SentenceClassifier(nn.Module):
    """A pretrained encoder, the mean of what it says of a sentence's tokens, and a linear layer.

    Args:
        path: folder of a model that transformers' AutoModel loads; nothing is downloaded.
        num_classes: C.

    Attributes:
        encoder: the pretrained model.
        head: nn.Linear to (B, C) logits.

    Raises:
        ArgumentError: of `path`: there is no such model, or it is no encoder.
    """

    def __init__(self, path: str, num_classes: int) -> None:
        super().__init__()
        self.encoder: Any = _loaded(AutoModel, path, "path")
        config = self.encoder.config
        if config.pad_token_id is None or getattr(config, "is_encoder_decoder", False):
            raise ArgumentError(
                "path", f"{path} holds a {type(self.encoder).__name__}, which is no encoder with padding"
            )
        # Of no use to the mean over tokens: without gradients, some engines would wait for them.
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        self.padding: int = config.pad_token_id
        self.head = nn.Linear(config.hidden_size, num_classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, C) logits of (B, T) token ids."""
        return self.head(self.embed(tokens_BT))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, H): the mean over the tokens that are no padding."""
        mask_BT = (tokens_BT != self.padding).to(torch.int64)
        hidden_BTH = self.encoder(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state
        weight_BT1 = mask_BT.to(hidden_BTH.dtype).unsqueeze(-1)
        return (hidden_BTH * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def _loaded(kind: Any, path: str, argument: str) -> Any:
    """What `kind` loads from a folder."""
    if not Path(path).is_dir():
        raise ArgumentError(argument, f"{path}: no such folder; give one with config.json, weights and tokenizer.json")
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(argument, f"{path} cannot be read by transformers ({reason})") from None
    finally:
        if shows_progress:
            logging.enable_progress_bar()
