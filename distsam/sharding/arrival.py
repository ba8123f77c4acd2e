"""The ranks of a launch come to one store; who has not come in time is named, by all who have, in the same words."""

import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import rendezvous

from distsam.errors import FirstRankMissing, InputError, SharedInputError

# The environment variable with the seconds that a rank waits for the others.
START_TIMEOUT = "DISTSAM_START_TIMEOUT_S"
DEFAULT_TIMEOUT_S = 300.0
_LONGEST_S = 86_400.0
_ALL = "all"
_BETWEEN_TRIES_S = 0.1
_TIME_TO_READ_S = 1.0


def start_timeout_s(env: Mapping[str, str] = os.environ) -> float:
    """Seconds that a rank waits at its start until all the others have come: DISTSAM_START_TIMEOUT_S, else 300.

    Raises:
        InputError: the variable is no number from 1 to 86,400.
    """
    given = env.get(START_TIMEOUT, str(DEFAULT_TIMEOUT_S))
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= _LONGEST_S:
        raise InputError(f"{START_TIMEOUT}: {given!r} is no number of seconds from 1 to {_LONGEST_S:.0f}")
    return seconds


def meet(rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The store at MASTER_ADDR and MASTER_PORT, which torchrun's agent or rank 0 keeps, once every rank has come to it.

    Args:
        rank: of this process.
        world_size: how many ranks are to come.
        timeout_s: how long this rank waits, in s, counted from this call.

    Collectives: none; each rank sends a few short messages to the store. Every rank calls it once in a launch.

    Raises:
        SharedInputError: some ranks did not come; the same on every rank that did.
        FirstRankMissing: there is no store, or no longer.
    """
    end_s = time.monotonic() + timeout_s
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps_store = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        if not keeps_store:
            _wait_until_open(address, port, end_s)
        # One rank in place of world_size: else rank 0 would wait in there for all, and not say for whom.
        store, _, _ = next(iter(rendezvous("env://", rank, 1, timeout=_until(end_s))))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        wait_for_all(dist.PrefixStore(f"distsam-arrivals-{attempt}", store), rank, world_size, timeout_s, end_s)
    except (OSError, dist.DistError) as error:
        reason = str(error).splitlines()[0]
        raise FirstRankMissing(
            f"rank 0 of {world_size} cannot be reached at {address}:{port} ({reason}), waited for up to "
            f"{timeout_s:g} s; look at what it says, at MASTER_ADDR and at MASTER_PORT, or set {START_TIMEOUT} to more"
        ) from None
    store.set_timeout(default_pg_timeout)
    return store


def wait_for_all(store: dist.Store, rank: int, world_size: int, timeout_s: float, end_s: float) -> None:
    """Return once all ranks have called this; the first whose time has come decides for all that they have not.

    The arrivals are one text and one counter, read only then, so that each rank sends four messages however many
    ranks there are.

    Args:
        store: of this launch, without the keys of an earlier one.
        rank: of this process.
        world_size: how many ranks are to come.
        timeout_s: how long this rank waits in all, in s, for the message.
        end_s: when that is over, on the monotonic clock.

    Raises:
        SharedInputError: some did not come; the same on every rank that did.
    """
    store.append("arrived", f"{rank},")  # type: ignore[attr-defined]  # the stub of torch lacks it
    if store.add("num_arrived", 1) == world_size:
        store.compare_set("outcome", "", _ALL)
    try:
        store.wait(["outcome"], _until(end_s))
    except dist.DistStoreError:
        store.compare_set("outcome", "", _judged(store, rank, world_size, timeout_s))
    outcome = store.get("outcome").decode()
    if outcome == _ALL:
        return
    if rank == 0:
        time.sleep(_TIME_TO_READ_S)  # the store may end with this process, and the others have still to read in it
    speaker, problem = outcome.split(" ", 1)
    raise SharedInputError(problem, speaker=int(speaker))


def _judged(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> str:
    """`_ALL`, or the rank that is to say who is missing, and what it is to say."""
    arrived = {int(word) for word in store.get("arrived").decode().split(",") if word}
    missing = sorted(set(range(world_size)) - arrived)
    if not missing:
        return _ALL
    return (
        f"{min(arrived)} {named(missing)} of {world_size} did not arrive within the {timeout_s:g} s that rank "
        f"{rank} waited; look at what they say and at their machines, or set {START_TIMEOUT} to more"
    )


def named(ranks: Iterable[int]) -> str:
    """Ranks in rising order for people: "rank 3", "ranks 1, 4 to 7, 9"."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    texts = [" to ".join(map(str, span)) for span in spans]
    is_one = len(spans) == 1 and len(spans[0]) == 1
    return f"rank{'' if is_one else 's'} {', '.join(texts)}"


def _until(end_s: float) -> timedelta:
    # A store takes 0 for no limit at all.
    return timedelta(seconds=max(end_s - time.monotonic(), 0.01))


def _wait_until_open(address: str, port: int, end_s: float) -> None:
    """Return once somebody listens there. Torch's own client says on 60 lines that nobody does."""
    while True:
        left_s = end_s - time.monotonic()
        try:
            socket.create_connection((address, port), timeout=max(left_s, 0.01)).close()
            return
        except OSError:
            if left_s <= _BETWEEN_TRIES_S:
                raise
        time.sleep(_BETWEEN_TRIES_S)
