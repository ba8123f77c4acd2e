"""The keys of the completion task, of its data sources and of its networks, and how each is built."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from distsam.errors import ArgumentError, InputError
from distsam.train.completion_auto import auto_batch, auto_sizes, check_auto
from distsam.train.completion_data import known_entries, refuse_table, stream_file, stream_lowrank
from distsam.train.keys_of_arguments import arguments_as_keys
from distsam.train.path_keys import PathKeys
from distsam.train.seams import AUTO, Field, Part, Seam, Section

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Auto = Literal["auto"]
# The key that a routed mode comes from.
_ROUTED_MODE = "sharding.mode"


class DataKeys(Section):
    """Which entries there are, and which of them training may see."""

    source: str = Field(
        description="A data set that installs with distsam, a file of yours, or a synthetic low-rank tensor."
    )
    observed: float = Field(default=0.8, gt=0, le=1, description="Share of the entries that is not held out.")
    validation: float = Field(default=0.1, ge=0, lt=1, description="Share of the observed kept for choosing weights.")
    split: Literal["random", "fibres"] = Field(default="random", description="Hold out entries or whole fibres.")
    fibre_mode: int | None = Field(default=None, ge=0, description="The mode along which fibres are held out.")
    standardise: bool = Field(default=True, description="Shift and scale values by the training entries' mean, std.")

    def check(self) -> None:
        if self.split == "fibres" and self.fibre_mode is None:
            raise ArgumentError("fibre_mode", "is missing; data.split=fibres needs the mode that fibres run along")
        if self.split != "fibres" and self.fibre_mode is not None:
            raise ArgumentError(
                "fibre_mode", f"{self.fibre_mode} is not used by data.split={self.split}; set split to fibres"
            )


class InstalledKeys(Section):
    """A data set that installs with distsam needs no further keys."""


class FileKeys(PathKeys):
    """source: file."""

    path: str = Field(description="The .npy or .npz file.")


class TableKeys(FileKeys):
    """source: table."""

    path: str = Field(description="The CSV, Parquet, Feather, netCDF (.nc) or MATLAB (.mat) file.")
    value: str | None = Field(default=None, description="Column or variable of values; null: the only one.")
    modes: list[str] | None = Field(default=None, description="Columns or dimensions of labels, one a mode; null: all.")


class LowrankKeys(Section):
    """source: lowrank."""

    equation: str = Field(description="Einsum of the truth's cores.")
    sizes: dict[str, PositiveInt] = Field(description="Size of every letter of the equation.")
    noise: float = Field(default=0.0, ge=0, description="Noise, in units of the truth's standard deviation.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the truth and its noise.")


class NetworkKeys(Section):
    """The tensor network that is fitted."""

    format: str = Field(description="How cores are connected.")
    init: Literal["gaussian", "data"] = Field(default="gaussian", description="Random start, or a decomposition.")
    init_std: PositiveFloat | None = Field(default=None, description="Std of the start's entries; null: the data's.")
    init_norms: list[PositiveFloat] | None = Field(
        default=None,
        description="Relative start norms, one a core; null: all equal, so that the deviation is 0.",
    )
    dtype: Literal["float32", "float64"] | None = Field(
        default=None, description="Type of the cores; null: that of train.precision, else float32."
    )

    def check(self) -> None:
        for key in ("init_norms", "init_std"):
            if self.init == "data" and getattr(self, key) is not None:
                raise ArgumentError(key, "is not used by network.init=data; set init to gaussian")


class CPKeys(Section):
    """format: cp."""

    bond_dim: PositiveInt | Auto = Field(description="Size of the bond; auto: by a rule, from the data.")


class BondKeys(Section):
    """format: tt and tr."""

    bond_dim: PositiveInt | list[PositiveInt] | Auto = Field(
        description="One size for all bonds, or one a bond; auto: by a rule, from the data."
    )


class TuckerKeys(Section):
    """format: tucker."""

    ranks: list[PositiveInt] | Auto = Field(description="One size a mode; auto: by a rule, from the data.")


class EinsumKeys(Section):
    """format: einsum."""

    equation: str = Field(description="Cores -> modes, such as 'ia,ab,bj->ij'.")
    sizes: dict[str, PositiveInt] = Field(description="Size of every bond; the modes' sizes come from the data.")


class CompletionKeys(Section):
    """task.kind: completion takes no keys in the task section."""


class CompletionTrainKeys(Section):
    """What completion adds to the train section."""

    batch_size: PositiveInt | Auto | None = Field(
        default=None, description="Entries a step over all ranks; null: all; auto: all, or some of more than 50,000."
    )
    loss: Literal["mean", "sum"] = Field(default="mean", description="Mean or sum of the squared errors.")


def build_task(sources: Seam[Part], formats: Seam[Part], config: Any, context: Any) -> Any:
    """The completion task of this rank.

    Args:
        sources, formats: the seams of data.source and network.format.
        config: of the run.
        context: a TaskContext.

    Raises:
        InputError: the data cannot be used, or the network does not fit it.
    """
    from distsam.tasks.completion import CompletionTask

    data, network = config.part_keys("data", DataKeys), config.part_keys("network", NetworkKeys)
    train = config.part_keys("train", CompletionTrainKeys)
    source = sources.chosen(data)
    with arguments_as_keys("data", routed_mode=_ROUTED_MODE):
        entries, split, routing = known_entries(
            source.build, _STREAMS.get(source.build), data, config.run.seed, context
        )
    num_values = len(split.train) if routing is None else routing.spreads["train"].count
    with arguments_as_keys("network"):
        network = network.model_copy(update=auto_sizes(formats, network, entries.shape, num_values))
        spec = formats.chosen(network).build(network, entries.shape)
    if network.dtype is not None:
        context = replace(context, dtype=torch_dtype(network.dtype))
    return CompletionTask(
        context,
        entries,
        split,
        spec,
        batch_size=auto_batch(train.batch_size, num_values),
        loss=train.loss,
        standardise=data.standardise,
        init=network.init,
        init_std=network.init_std,
        init_norms=network.init_norms,
        routing=routing,
    )


def origin(config: Any) -> tuple[str, Any]:
    """Where the entries come from."""
    path = getattr(config.data, "path", None)
    return ("data.source", config.data.source) if path is None else ("data.path", path)


def check_task(config: Any) -> None:
    """InputError where keys of several sections do not fit a completion."""
    if config.train.early_stopping is not None and config.data.validation == 0:
        raise InputError(f"train.early_stopping: {config.train.early_stopping} needs data.validation > 0")
    if config.train.refit and config.data.validation == 0:
        raise InputError(
            "train.refit: true needs data.validation > 0: without it all that is observed is fitted already"
        )
    check_auto(config)
    precision, dtype = config.train.precision, config.network.dtype
    if None not in (precision, dtype) and dtype != {"bf16": "float32"}.get(precision, precision):
        raise InputError(f"network.dtype: {dtype} contradicts train.precision={precision}; leave one of them out")


def refit_keys() -> dict[str, Any]:
    """Dotted key -> value of the fit to all observed entries; the same ones stay held out."""
    return {"data.validation": 0.0, "train.early_stopping": None}


def is_routable(config: Any) -> bool:
    """True where nothing needs all entries in one process."""
    return config.network.init == "gaussian" and config.optim.weight_decay != AUTO


def planned_keys(config: Any) -> dict[str, Any]:
    """Dotted key -> value of a plan: a start that needs no values, of the same shapes."""
    return {"network.init": "gaussian"}


def build_installed(data: DataKeys) -> Any:
    """The entries of a data set that installs with distsam."""
    from distsam.tasks.sources import load_bundled

    return load_bundled(data.source)


def build_file(data: Any) -> Any:
    """The entries of data.path.

    Raises:
        InputError: it is a table, or cannot be read.
    """
    from distsam.tasks.files import read_entries

    refuse_table(data.path)
    return read_entries(data.path)


def build_table(data: Any) -> Any:
    """The entries of the table data.path."""
    suffix = Path(data.path).suffix.lower()
    if suffix in (".nc", ".nc4"):
        from distsam.tasks.netcdf import read_netcdf as read
    elif suffix == ".mat":
        from distsam.tasks.matlab import read_mat as read
    else:
        from distsam.tasks.tables import read_table as read
    return read(data.path, data.value, data.modes)


def build_lowrank(data: Any) -> Any:
    """The entries of a synthetic low-rank tensor."""
    from distsam.tasks.sources import lowrank

    return lowrank(data.equation, data.sizes, noise=data.noise, seed=data.seed)


# How the entries of a source are gone through in blocks, by its builder.
_STREAMS: dict[Callable[..., Any], Callable[[Any], Any]] = {build_file: stream_file, build_lowrank: stream_lowrank}


def build_cp(network: Any, shape: tuple[int, ...]) -> Any:
    """network.format=cp."""
    from distsam.tensornet import cp

    return cp(shape, network.bond_dim)


def build_tt(network: Any, shape: tuple[int, ...]) -> Any:
    """network.format=tt."""
    from distsam.tensornet import tt

    return tt(shape, network.bond_dim)


def build_tr(network: Any, shape: tuple[int, ...]) -> Any:
    """network.format=tr."""
    from distsam.tensornet import tr

    return tr(shape, network.bond_dim)


def build_tucker(network: Any, shape: tuple[int, ...]) -> Any:
    """network.format=tucker."""
    from distsam.tensornet import tucker

    return tucker(shape, network.ranks)


def build_einsum(network: Any, shape: tuple[int, ...]) -> Any:
    """network.format=einsum: the modes take their sizes from the data."""
    from distsam.tensornet.formats import einsum_of_shape

    return einsum_of_shape(network.equation, network.sizes, shape)


def torch_dtype(name: str) -> Any:
    """torch's dtype of this name."""
    import torch

    return getattr(torch, name)
