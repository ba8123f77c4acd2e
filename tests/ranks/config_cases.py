"""What runs on every rank to see whether all of them have the same config."""

from pathlib import Path
from unittest import mock

from collective_count import CollectiveCount

from distsam.errors import SharedInputError
from distsam.sharding.collectives import rank
from distsam.train import same_config
from distsam.train.config_file import load_config
from distsam.train.versions import versions


def problem_with(path: Path, overrides: dict[int, list[str]], torch_of: dict[int, str]) -> tuple[str, int]:
    """What each rank says, "" for nothing, and how many collectives it ran.

    Args:
        path: the config file.
        overrides: rank -> those of this rank.
        torch_of: rank -> the version of torch that it claims to have.
    """
    config = load_config(path, overrides.get(rank(), []))
    found = {**versions(), **({"torch": torch_of[rank()]} if rank() in torch_of else {})}
    problem = ""
    with CollectiveCount() as count, mock.patch.object(same_config, "versions", return_value=found):
        try:
            same_config.check_same_config(config)
        except SharedInputError as error:
            problem = str(error)
    return problem, len(count.sizes)
