"""What a run says of itself before its first step: one line of what it is, then one for each probable mistake."""

from collections.abc import Iterator

from distsam.tasks.task import describe, num_values, warnings
from distsam.train import parts
from distsam.train.build import RunParts
from distsam.train.config import Config, unused_keys
from distsam.train.placing import wants_plan


def describe_run(run: RunParts, config: Config, step: int, more: str = "") -> str:
    """One line: what is learnt, optimizer, plan, ranks; `more`, unless empty; and where a resume begins."""
    ranks, optim = run.layout.world.world_size, config.optim
    task = describe(run.task)
    says = [
        *filter(None, (task, _size(run, task))),
        f"{optim.method} on {optim.base}" if optim.method != "base" else optim.base,
        f"plan {run.plan.name} on {ranks} rank{'s' if ranks > 1 else ''}{_by_auto(run, config)}",
    ]
    says += [f"{key}={value:g} by auto" for key, value in run.auto.items()]
    if says_engine := parts.ENGINES.chosen(config.engine).describe(config):
        says.append(says_engine)
    if more:
        says.append(more)
    if step:
        says.append(f"resumed after step {step}")
    return "; ".join(says)


def _by_auto(run: RunParts, config: Config) -> str:
    """That auto chose the plan, and its mesh where the plan's name does not say it."""
    if not wants_plan(config, run.layout.world.world_size):
        return ""
    return f" by auto ({run.plan.mesh})" if len(run.plan.axes) > 1 else " by auto"


def _size(run: RunParts, task: str) -> str:
    """How large the model is; nothing where the task has said it."""
    if run.frozen:
        return f"{run.num_trained:,} of {run.num_parameters:,} parameters trained"
    return "" if "parameters" in task else f"{run.num_parameters:,} parameters"


def probable_mistakes(run: RunParts, config: Config) -> Iterator[str]:
    """One line for each thing that runs, but that the user probably did not want."""
    yield from warnings(run.task)
    values = num_values(run.task)
    if values is not None and run.num_parameters > values and not config.optim.weight_decay:
        yield (
            f"the model has {run.num_parameters} parameters for {values} training values and "
            "optim.weight_decay is 0: it will fit noise; a smaller network or an L2 term helps"
        )
    if not run.coordinator.networks:
        yield "the model holds no tensor network, so no balance is measured; build it of distsam.TensorNetwork"
    yield from unused_keys(config)
