"""`distsam plan`: what a run would hold and send on one rank of many, without them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from distsam.commands.loading import end_loading
from distsam.commands.messages import mistakes_as_messages
from distsam.environment import in_units
from distsam.errors import InputError

# Key of the record -> what it is called, and what belongs to it.
_BYTES = {
    "cores": ("cores", ""),
    "other_parameters": ("other parameters", "buffers too"),
    "gradients": ("gradients", "SAM holds those of both passes"),
    "optimizer_state": ("optimizer state", ""),
    "sam_copy": ("SAM's copy", "of the weights that it moves"),
    "activations": ("activations", "the batch and temporary tensors too"),
    "communication": ("communication", "messages, and weights gathered for a pass"),
    "peak": ("peak", "of all at one time"),
}


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, as of distsam train; the last one wins.")
    ] = None,
    *,
    world_size: Annotated[int, typer.Option("--world-size", help="Ranks that would train; 16,384, say.")] = 1,
    rank: Annotated[int, typer.Option("--rank", help="The rank to look at.")] = 0,
    link: Annotated[
        str | None,
        typer.Option(
            "--link",
            help="What joins the ranks: nvlink, infiniband, ethernet or loopback; else sharding.link, or infiniband.",
        ),
    ] = None,
    tflops: Annotated[
        float, typer.Option("--tflops", help="What a rank computes, in 10^12 operations a second.")
    ] = 10.0,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write the plan to this .json file, for sharding.plan=FILE.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead; bytes and seconds.")] = False,
) -> None:
    """Say what a run needs of one rank of many: memory, messages, time. Starts nothing and needs no GPU."""
    with mistakes_as_messages():
        from distsam.train import load_config

        if not tflops > 0:
            raise InputError(f"--tflops: {tflops:g}; give a number above 0")
        settings = load_config(config, overrides or [])
        from distsam.train.dry_run import dry_run
        from distsam.train.forecast import link_for, record
        from distsam.train.planning import planned_machine

        speeds = link_for(settings, link)
        end_loading()
        forecast = dry_run(settings, world_size, rank, planned_machine(settings, speeds, tflops * 1e12))
        if save is not None:
            _save(forecast.plan, save)
        found = record(forecast, speeds, tflops * 1e12)
        print(json.dumps(found) if as_json else "\n".join(_lines(found)))


def _save(made: Any, path: Path) -> None:
    if path.suffix != ".json":
        raise InputError(f"--save: {path} must end in .json, by which sharding.plan knows a file")
    try:
        path.write_text(made.to_json(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--save: {path} cannot be written ({error.strerror})") from None


def _lines(found: dict[str, Any]) -> Iterator[str]:
    mesh = " x ".join(f"{size} ({axis})" for axis, size in found["mesh"].items())
    yield (
        f"plan {found['plan']} on a mesh of {mesh}; {found['num_trained']:,} of {found['num_parameters']:,} "
        "parameters trained"
    )
    yield from found["reasons"]
    title = f"memory of rank {found['rank']}"
    yield f"\n{title:<22}{'bytes':>16}"
    for key, (name, note) in _BYTES.items():
        size = found["bytes"][key]
        yield f"  {name:<20}{size:>16,}  {in_units(size):>10}  {note}".rstrip()
    yield f"\n{'messages of a step':<22}{'count':>8}{'ranks':>8}{'bytes':>18}{'largest':>16}{'time':>12}"
    for row in found["collectives"]:
        sizes = f"{row['bytes']:>18,}{row['largest_bytes']:>16,}"
        yield f"  {row['kind']:<20}{row['count']:>8}{row['num_ranks']:>8}{sizes}{_time(row['time_s']):>12}"
    if not found["collectives"]:
        yield "  none"
    yield ""
    yield from _summary(found)


def _summary(found: dict[str, Any]) -> Iterator[str]:
    times, share, simulated = found["time_s"], found["sam_share"], found["simulated_world_size"]
    yield (
        f"a step takes about {_time(times['total'])}: {_time(times['computing'])} of computing "
        f"{found['flops']:.3g} operations, {_time(times['sending'])} of sending by {found['link']['name']}, "
        "one after the other"
    )
    if share["time"]:
        yield f"SAM's share: {share['bytes_sent']:.0%} of the bytes sent, {share['time']:.0%} of the time"
    empty = found["empty_pieces"]
    yield f"rank {found['rank']} has an empty piece of: {', '.join(empty) or 'nothing'}"
    if simulated != found["world_size"]:
        yield (
            "by formulas; activations, communication, operations and messages inside networks are those of a step "
            f"simulated on {simulated:,} ranks with this rank's batch"
        )


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
