"""May this config run in this folder? Yes if it holds no run, or, with resume, the same one."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from distsam.errors import InputError
from distsam.runs.folder import RunFolder
from distsam.runs.lock import RunLock
from distsam.tasks.task import Task, identity
from distsam.train import parts
from distsam.train.agreement import agreed, from_first_rank
from distsam.train.config import Config
from distsam.train.config_file import read_yaml, to_yaml
from distsam.train.keys_of_arguments import arguments_as_keys

# What makes two runs the same training, beside the task and its own sections: change one and the weights mean something
# else. Steps, cadences, sharding, trackers and the numbers of the optimizer may change between the parts of one run.
_DEFINING_KEYS = ("run.seed", "optim.method", "optim.base", "train.precision")

# Not where data and a pretrained model lie: that they are the same, their sha256 says.
MOVABLE_KEYS = ("data.path", "data.tokenizer", "model.path")


def check_folder(folder: RunFolder, config: Config) -> None:
    """InputError unless `config` may run in `folder`: it holds no run, or, with resume, the same one."""
    with arguments_as_keys("run", path="run.dir"):
        folder.check_usable()
    if not folder.holds_run():
        return
    if config.train.resume == "never":
        raise InputError(
            f"run.dir: {folder.path} holds a run already; choose another run.dir, or set train.resume=auto"
        )
    if not folder.config.exists():
        raise InputError(f"run.dir: {folder.path} has no config.yaml, so it cannot be resumed; choose another")
    _check_same_run(read_yaml(folder.config), config, folder)


def claim_folder(folder: RunFolder, config: Config) -> RunLock:
    """Create `folder` with the config in it, unless it holds a run, and lock it.

    Raises:
        InputError: another run writes there, has written there since `check_folder`, or it cannot be written.
    """
    with arguments_as_keys("run", path="run.dir"):
        return folder.claim(to_yaml(config), lambda: check_folder(folder, config))


def _check_same_run(saved: Mapping[str, Any], config: Config, folder: RunFolder) -> None:
    now = defining_values(config, config.shown())
    before = defining_values(config, saved)
    for key, value in now.items():
        if key not in before or before[key] != value:
            was = repr(before[key]) if key in before else "absent"
            raise InputError(
                f"{key}: {value!r} differs from the run in {folder.path}, where it is {was}; "
                f"resume with the same {key}, or choose another run.dir"
            )


def defining_values(config: Config, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, in `raw`, of everything that defines which training `config` is."""
    task = parts.TASKS.chosen(config.task)
    sections = {"task", *(form.name for form in task.sections)}
    keys = {*_DEFINING_KEYS, *(f"{section}.{key}" for section, kind in task.adds.items() for key in kind.model_fields)}
    values = {}
    for section, content in raw.items():
        # What somebody has written into a saved config since need not be a section.
        for name, value in content.items() if isinstance(content, Mapping) else ():
            key = f"{section}.{name}"
            if (section in sections or key in keys) and key not in MOVABLE_KEYS:
                values[key] = value
    return values


def fingerprint(config: Config) -> str:
    """16 hexadecimal digits, the same for two configs of the same training."""
    text = json.dumps(defining_values(config, config.shown()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identify(config: Config, task: Task) -> dict[str, str]:
    """The digests of config and data by which a resume knows this training, as rank 0 has them.

    Every rank must have the same data: machines with disks of their own can hold other files under the same name.
    """
    own = identity(task)
    agreed_identity = from_first_rank(lambda: {"fingerprint": fingerprint(config), "data_sha256": own})

    def check() -> None:
        if own != agreed_identity["data_sha256"]:
            key, given = parts.TASKS.chosen(config.task).origin(config)
            raise InputError(f"{key}: {given} holds other data than on rank 0; give every rank the same")

    agreed(check)
    return agreed_identity
