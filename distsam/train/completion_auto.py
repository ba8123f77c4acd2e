"""What "auto" becomes in the config of a completion; the rule itself is `distsam.tasks.auto`."""

from collections.abc import Mapping
from typing import Any

from distsam.errors import InputError
from distsam.train.seams import AUTO, Part, Seam

KEYS = ("network.bond_dim", "network.ranks", "optim.lr", "optim.weight_decay", "train.batch_size")
# A decay that is no L2 term, or steps that are not Adam's, were not measured.
_BASES = {"lr": ("adam", "adamw"), "weight_decay": ("adam", "sgd")}


def check_auto(config: Any) -> None:
    """InputError where a rule is asked for that does not know this kind of run."""
    for key, bases in _BASES.items():
        if getattr(config.optim, key) != AUTO:
            continue
        if config.optim.base not in bases:
            raise InputError(
                f"optim.{key}: auto is known for optim.base={' and '.join(bases)}, not for {config.optim.base}; "
                "give a number"
            )
        if not config.data.standardise:
            raise InputError(f"optim.{key}: auto is known for data.standardise=true alone; give a number")


def auto_sizes(formats: Seam[Part], network: Any, shape: tuple[int, ...], num_values: int) -> dict[str, Any]:
    """Key of the network section -> the size that the rule gives, for the key that says auto; none where none does."""
    from distsam.tasks.auto import bond_for, tucker_ranks

    key = next((key for key in ("bond_dim", "ranks") if getattr(network, key, None) == AUTO), None)
    if key is None:
        return {}

    def sized(bond: int) -> Any:
        return bond if key == "bond_dim" else tucker_ranks(shape, bond)

    def spec_of(bond: int) -> Any:
        return formats.chosen(network).build(network.model_copy(update={key: sized(bond)}), shape)

    return {key: sized(bond_for(spec_of, num_values))}


def auto_batch(batch_size: int | str | None, num_values: int) -> int | None:
    """The batch size, where it says auto that of the rule."""
    from distsam.tasks.auto import batch_for

    return batch_for(num_values) if isinstance(batch_size, str) else batch_size


def settle(formats: Seam[Part], config: Any, task: Any) -> Mapping[str, Any]:
    """Dotted key -> the number that the rule gives for this data, for the keys that say auto.

    Args:
        formats: the seam of network.format.
        config: of the run.
        task: its CompletionTask.

    Raises:
        InputError: the weight decay is to come from entries that lie on several ranks.
    """
    from distsam.tasks.auto import LEARNING_RATE
    from distsam.tasks.pilot import choose_decay

    train, optim, num_values = task.split.train, config.optim, task.num_values()
    sizes = auto_sizes(formats, config.network, task.spec.shape, num_values)
    values = {f"network.{key}": size for key, size in sizes.items()}
    if config.train.batch_size == AUTO:
        values["train.batch_size"] = auto_batch(AUTO, num_values)
    if optim.lr == AUTO:
        values["optim.lr"] = LEARNING_RATE
    if optim.weight_decay == AUTO:
        if task.row_bounds is not None:
            raise InputError(
                "optim.weight_decay: auto needs all entries in one process, and this plan divides the rows of a mode "
                "over several; give a number"
            )
        learnt = task.scaling.learnt(task.entries.values[train])
        decay = choose_decay(task.spec, task.entries.indices[train], learnt, LEARNING_RATE, config.run.seed)
        values["optim.weight_decay"] = decay * (num_values if config.train.loss == "sum" else 1)
    return values
