"""A mistake is one line, printed once however many ranks there are, and an exit code."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from distsam.environment import machine, place
from distsam.errors import (
    FirstRankMissing,
    InputError,
    RunIncomplete,
    SharedInputError,
    TrainingDiverged,
    UserCodeError,
)

BAD_INPUT = 2
FAILED = 1
_WAIT_FOR_MESSAGE_S = 10.0
_LONGEST = 370


@contextmanager
def mistakes_as_messages() -> Iterator[None]:
    """A user's mistake is one line and exit code 2; a run that diverged or could not be saved, one line and 1.

    Where code that the user gave has raised, its own traceback stands before that line.
    """
    try:
        yield
    except InputError as error:
        _print_once(error, is_shared=isinstance(error, SharedInputError))
        raise SystemExit(BAD_INPUT) from None
    except (TrainingDiverged, RunIncomplete) as error:
        _print_once(error, is_shared=True)
        raise SystemExit(FAILED) from None
    except RuntimeError as error:
        # gloo's words where another rank has ended in the middle of a collective.
        if not any(words in str(error) for words in ("Connection closed by peer", "Connection reset by peer")):
            raise
        # That rank is to say it first, and its exit code is to be the launcher's.
        time.sleep(2 * _WAIT_FOR_MESSAGE_S)
        print(f"distsam: rank {place().rank} has lost another rank, whose own message says why", file=sys.stderr)
        raise SystemExit(FAILED) from None


def _print_once(error: Exception, is_shared: bool) -> None:
    """Print `error` on one rank of those that have it.

    What all ranks have in common, rank 0 prints, or another that the error names. What a rank found before it met the
    others, the first rank of its machine prints.
    """
    here, here_machine = place(), machine()
    # The first rank of its machine may be the one that is missing.
    stands_in = isinstance(error, FirstRankMissing) and here.rank == 1
    speaker = error.speaker if isinstance(error, SharedInputError) else 0
    if here.rank == speaker or (not is_shared and here.local_rank == 0) or stands_in:
        _print(error, here.rank)
        return
    if is_shared and here_machine not in (None, 0):
        return  # its launcher must end with this code too, before it loses contact with that of rank 0
    # torchrun kills all ranks of a machine when the first one ends: that must not be one that prints nothing.
    time.sleep(_WAIT_FOR_MESSAGE_S)
    if not is_shared and here_machine is not None:
        _print(error, here.rank)


def _print(error: Exception, rank: int) -> None:
    if isinstance(error, UserCodeError | SharedInputError) and error.user_traceback:
        print(error.user_traceback.rstrip("\n"), file=sys.stderr)
    print(f"distsam: {f'rank {rank}: ' if rank else ''}{_shortened(str(error))}", file=sys.stderr, flush=True)


def _shortened(message: str) -> str:
    """One line that a terminal can show: what a user gave can be of any length. The end says what would be right."""
    line = " ".join(message.split())
    if len(line) <= _LONGEST:
        return line
    half = (_LONGEST - 5) // 2
    return f"{line[:half]} ... {line[-half:]}"
