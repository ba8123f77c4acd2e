"""The keys of the classification task, of its data sources and of its models, and how each is built."""

import warnings
from typing import Annotated, Any

from distsam.errors import ArgumentError, InputError
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.path_keys import PathKeys, absolute
from distsam.train.seams import Field, Part, Seam, Section, field_validator

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


class DataKeys(Section):
    """Which examples there are, and what training may see of them."""

    source: str = Field(description="npz, text, a data set that is installed, or target, a function of yours.")
    heldout: Share = Field(default=0.2, description="Share of the examples that only judges.")
    validation: Share = Field(default=0.1, description="Share of the rest that chooses weights.")
    label_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Share of the training labels that are made wrong, symmetrically, by run.seed."
    )
    standardise: bool = Field(default=True, description="Shift and scale inputs by the training inputs' mean, std.")
    num_workers: int = Field(default=0, ge=0, description="Processes that load batches ahead; 0: none.")


class NpzKeys(PathKeys):
    """source: npz."""

    path: str = Field(description="The .npz file with X (N, ...) and y (N,), classes from 0.")
    num_classes: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Number of classes; null: the largest in y and one more."
    )


class ModelKeys(Section):
    """What classifies."""

    kind: str = Field(default="mlp", description="mlp, resnet20, resnet32, transformer, pretrained, or target.")
    tensorize: dict[str, dict[str, Any] | None] | None = Field(
        default=None,
        description="Name pattern or type:Linear -> format, rank: layers that become tensor networks; null: none.",
    )
    fit: bool = Field(
        default=False, description="Those layers start at their weights, of a pretrained model; false: anew."
    )
    adapters: dict[str, dict[str, Any] | None] | None = Field(
        default=None,
        description="Name pattern or type:Linear -> format (lora, tucker, tt), rank: all else is frozen; null: none.",
    )
    trained: list[str] | None = Field(
        default=None,
        description="Patterns of parameters that are trained beside adapters, or alone; null: the last linear layer "
        "beside adapters, else all.",
    )


class MLPKeys(Section):
    """kind: mlp."""

    widths: list[PositiveInt] = Field(default=[256, 256], description="Sizes of the hidden layers.")
    dropout: Share = Field(default=0.0, description="Share of hidden values that training drops.")


class ResNetKeys(Section):
    """kind: resnet20 and resnet32."""

    width: PositiveInt = Field(default=16, description="Channels of the first stage; each of the next two doubles it.")
    norm: str = Field(default="batch", pattern="^(batch|group)$", description="batch, or group: alike on many ranks.")


class TransformerKeys(Section):
    """kind: transformer."""

    width: PositiveInt = Field(default=64, description="Numbers a token.")
    heads: PositiveInt = Field(default=4, description="Attention heads; they must divide width.")
    depth: PositiveInt = Field(default=2, description="Encoder blocks.")
    token: PositiveInt = Field(default=8, description="Numbers of a vector that make a token.")
    dropout: Share = Field(default=0.0, description="Share of attention that training drops.")


class TextKeys(PathKeys):
    """source: text."""

    path: str = Field(description="A CSV, Parquet or Feather file with a row for each text.")
    text: str = Field(default="text", description="Its column of texts.")
    label: str = Field(default="label", description="Its column of labels.")
    tokenizer: str = Field(description="Folder of the saved model whose tokenizer cuts the texts.")
    max_length: Annotated[int, Field(ge=2)] = Field(default=64, description="Tokens after which a text is cut.")

    _absolute_too = field_validator("tokenizer")(absolute)


class PretrainedKeys(PathKeys):
    """kind: pretrained."""

    path: str = Field(description="Folder of an encoder, as Hugging Face's transformers saves it.")


class ClassificationKeys(Section):
    """task.kind: classification."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of a label that is spread over all classes."
    )


class ClassificationTrainKeys(Section):
    """What classification adds to the train section."""

    batch_size: PositiveInt | None = Field(default=None, description="Examples a step over all ranks; null: all.")


def build_task(sources: Seam[Part], models: Seam[Part], config: Any, context: Any) -> Any:
    """The classification task of this rank.

    Args:
        sources, models: the seams of data.source and model.kind.
        config: of the run.
        context: a TaskContext.

    Raises:
        InputError: the data cannot be used, or the model does not fit them.
    """
    from distsam.tasks.classification import ClassificationTask
    from distsam.tasks.labelled import split_examples

    data, model = config.part_keys("data", DataKeys), config.part_keys("model", ModelKeys)
    with arguments_as_keys("data"):
        examples = sources.chosen(data).build(data)
        part = split_examples(examples, data.heldout, data.validation, config.run.seed)

    notes: dict[str, None] = {}

    def make_model(shape: tuple[int, ...], num_classes: int) -> Any:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = build_model(shape, num_classes)
        # As lines of the run: once, and on one rank.
        notes.update(dict.fromkeys(str(warning.message) for warning in said))
        return made

    def build_model(shape: tuple[int, ...], num_classes: int) -> Any:
        with arguments_as_keys("model", rules="model.tensorize"):
            made = models.chosen(model).build(model, shape, num_classes)
            if model.tensorize:
                from distsam.tensornet.tensorize import tensorize

                tensorize(made, model.tensorize, fit=model.fit)
        with arguments_as_keys("model", rules="model.adapters"):
            if model.adapters or model.trained is not None:
                from distsam.tensornet.adapters import train_part

                train_part(made, model.adapters or {}, model.trained)
        return made

    return ClassificationTask(
        context,
        examples,
        part,
        make_model,
        batch_size=config.part_keys("train", ClassificationTrainKeys).batch_size,
        label_smoothing=config.part_keys("task", ClassificationKeys).label_smoothing,
        label_noise=data.label_noise,
        noise_seed=config.run.seed,
        standardise=data.standardise,
        num_workers=data.num_workers,
        notes=notes,
    )


def check_task(config: Any) -> None:
    """InputError where keys of several sections do not fit a classification."""
    if config.train.early_stopping is not None and config.data.validation == 0:
        raise InputError(f"train.early_stopping: {config.train.early_stopping} needs data.validation > 0")


def planned_keys(config: Any) -> dict[str, Any]:
    """Dotted key -> value of a plan: no processes that load, and layers of the same shapes that fit no weights."""
    return {"data.num_workers": 0, "model.fit": False}


def origin(config: Any) -> tuple[str, Any]:
    """Where the examples come from."""
    for key in ("path", "target"):
        if getattr(config.data, key, None) is not None:
            return f"data.{key}", getattr(config.data, key)
    return "data.source", config.data.source


def build_npz(data: Any) -> Any:
    """The examples of data.path."""
    from distsam.tasks.labelled import read_npz

    return read_npz(data.path, data.num_classes)


def build_digits(data: Any) -> Any:
    """scikit-learn's digits."""
    from distsam.tasks.labelled import digits

    return digits()


def build_indian_pines(data: Any) -> Any:
    """The labelled pixels of Indian Pines."""
    from distsam.tasks.sources import indian_pines_pixels

    return indian_pines_pixels()


def build_text(data: Any) -> Any:
    """The texts of data.path as ids of tokens."""
    from distsam.tasks.pretrained import read_sentences

    return read_sentences(data.path, data.text, data.label, data.tokenizer, data.max_length)


def build_target_data(data: Any) -> Any:
    """The (X, y) that data.target returns."""
    from distsam.tasks.labelled import labelled
    from distsam.tasks.target import call_target

    made = call_target(data.target, data.arguments)
    if not isinstance(made, tuple | list) or len(made) != 2:
        raise ArgumentError("target", f"{data.target} returned a {type(made).__name__}; it must return (X, y)")
    inputs, classes = made
    return labelled(inputs, classes, data.target)


def build_mlp(model: Any, shape: tuple[int, ...], num_classes: int) -> Any:
    """model.kind=mlp."""
    from distsam.tasks.models import mlp

    return mlp(shape, num_classes, model.widths, model.dropout)


def build_resnet(model: Any, shape: tuple[int, ...], num_classes: int) -> Any:
    """model.kind=resnet20, resnet32."""
    from distsam.tasks.models import resnet

    return resnet(shape, num_classes, int(model.kind.removeprefix("resnet")), model.width, model.norm)


def build_transformer(model: Any, shape: tuple[int, ...], num_classes: int) -> Any:
    """model.kind=transformer."""
    from distsam.tasks.models import Transformer

    return Transformer(shape, num_classes, model.width, model.heads, model.depth, model.token, model.dropout)


def build_pretrained(model: Any, shape: tuple[int, ...], num_classes: int) -> Any:
    """model.kind=pretrained."""
    from distsam.tasks.pretrained import SentenceClassifier

    return SentenceClassifier(model.path, num_classes)


def build_target_model(model: Any, shape: tuple[int, ...], num_classes: int) -> Any:
    """The nn.Module that model.target returns."""
    from torch import nn

    from distsam.tasks.target import call_target

    made = call_target(model.target, model.arguments)
    if not isinstance(made, nn.Module):
        raise ArgumentError("target", f"{model.target} returned a {type(made).__name__}; it must return an nn.Module")
    return made
