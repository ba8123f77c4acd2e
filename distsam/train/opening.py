"""What a run says of itself before its first step: one line of what it is, and one for each thing hardly meant."""

from collections.abc import Iterator

from distsam.train.build import Job, Problem
from distsam.train.config import OptimConfig
from distsam.train.config_checks import RESCALINGS, split_method


def describe_run(problem: Problem, job: Job, optim: OptimConfig, step: int) -> str:
    """One line: network, parameters, entries of each part, optimizer, plan, ranks; and where a resume begins."""
    ranks = job.world.world_size
    parts = [
        job.task.describe(),
        f"{optim.method} on {optim.base}" if optim.method != "base" else optim.base,
        f"plan {job.plan.name} on {ranks} rank{'s' if ranks > 1 else ''}",
    ]
    if step:
        parts.append(f"resumed after step {step}")
    return "; ".join(parts)


def doubts(problem: Problem, optim: OptimConfig) -> Iterator[str]:
    """One line for each thing that can be run and is hardly meant."""
    train, validation = (problem.entries.values[part] for part in (problem.split.train, problem.split.validation))
    if train.min() == train.max():
        yield f"all {len(train)} training values are {train[0]:g}: there is nothing to learn, and R2 means nothing"
    elif validation.size and validation.min() == validation.max():
        yield (
            f"all {len(validation)} validation values are {validation[0]:g}: R2 is undefined there, so that the last "
            "weights are taken, and none end training early; raise data.validation"
        )
    if problem.spec.num_parameters > len(train) and not optim.weight_decay:
        yield (
            f"the network has {problem.spec.num_parameters} parameters for {len(train)} training entries and "
            "optim.weight_decay is 0: it will fit noise; a smaller network or an L2 term helps"
        )
    # Not refused: one config serves many methods, and a sweep over optim.method changes that key alone.
    parts = split_method(optim.method)
    for key, users in (("rho", ("sam",)), ("alpha", RESCALINGS)):
        value = getattr(optim, key)
        if value != type(optim).model_fields[key].default and not set(users) & set(parts):
            yield f"optim.{key}: {value} is not used by optim.method={optim.method}; it is for {', '.join(users)}"
