"""Sentences, and pretrained transformers that classify them; the one importer of Hugging Face's transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.tasks.labelled import Labelled
from distsam.tasks.tables import read_texts
from distsam.tensornet.exchange import is_tensorized, load_tensorized

try:
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging
except ImportError as error:
    raise ArgumentError(
        "path", f"transformers is not installed or cannot be imported ({error}); pip install 'distsam[text]'"
    ) from None


# Stands in place of an id where a text has no more tokens.
PADDING = -1


def read_sentences(path: str, text: str, label: str, tokenizer: str, max_length: int) -> Labelled:
    """The rows of a table as token ids, filled up with PADDING to the longest, and their classes.

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
    # Models need not know which id the tokenizer fills up with.
    ids = np.where(tokens["attention_mask"] > 0, tokens["input_ids"], PADDING).astype(np.int64)
    return Labelled(ids, classes, len(names), tuple(map(str, names)))


class SentenceClassifier(nn.Module):
    """A pretrained encoder, the mean of what it says of a sentence's tokens, and a linear layer.

    Args:
        path: folder of a model that transformers' AutoModel loads, or of a compressed one; nothing is downloaded.
        num_classes: C.

    Attributes:
        encoder: the pretrained model.
        head: nn.Linear to (B, C) logits.

    Raises:
        ArgumentError: of `path`: there is no such model, it lacks weights, or it is no encoder.
    """

    def __init__(self, path: str, num_classes: int) -> None:
        super().__init__()
        self.encoder: Any = _encoder(path)
        config = self.encoder.config
        if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
            raise ArgumentError("path", f"{path} holds a {type(self.encoder).__name__}, which is no encoder")
        # Of no use to the mean over tokens: without gradients, some engines would wait for them.
        if getattr(self.encoder, "pooler", None) is not None:
            self.encoder.pooler = None
        self.head = nn.Linear(config.hidden_size, num_classes)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, C) logits of (B, T) token ids, PADDING where there is none."""
        return self.head(self.embed(tokens_BT))

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """(B, H): the mean over the tokens that are no padding."""
        if tokens_BT.dim() != 2 or tokens_BT.is_floating_point():
            shape = tuple(tokens_BT.shape)
            raise ArgumentError(
                "model", f"is pretrained, which reads ids of tokens; these are {tokens_BT.dtype} {shape}"
            )
        mask_BT = (tokens_BT != PADDING).to(torch.int64)
        ids_BT = tokens_BT.clamp(min=0)
        hidden_BTH = self.encoder(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        weight_BT1 = mask_BT.to(hidden_BTH.dtype).unsqueeze(-1)
        return (hidden_BTH * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def _encoder(path: str) -> Any:
    """The model in a folder, whole; also one that `distsam compress` has written."""
    weights = Path(path) / "model.safetensors"
    if weights.is_file() and is_tensorized(weights):
        made = _quietly(lambda: AutoModel.from_config(_loaded(AutoConfig, path, "path")), path, "path")
        return load_tensorized(made, weights)
    made, found = _loaded(AutoModel, path, "path", output_loading_info=True)
    # A pooler is not used.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ArgumentError(
            "path", f"{path} has no weights for {missing[0]} and {len(missing) - 1} others of its model"
        )
    return made


def _loaded(kind: Any, path: str, argument: str, **options: Any) -> Any:
    """What `kind` loads from a folder."""
    if not Path(path).is_dir():
        raise ArgumentError(argument, f"{path}: no such folder; give one with config.json, weights and tokenizer.json")
    return _quietly(lambda: kind.from_pretrained(path, local_files_only=True, **options), path, argument)


def _quietly(load: Callable[[], Any], path: str, argument: str) -> Any:
    """What `load` gives, without transformers' own bars and reports."""
    shows_progress, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(argument, f"{path} cannot be read by transformers ({reason})") from None
    finally:
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()
