"""`python -m distsam.launch`: torchrun, ending as its ranks end: with the exit code of the one that failed first.

    python -m distsam.launch --standalone --nproc-per-node 2 -m distsam train configs/quickstart.yaml

It takes torchrun's arguments.
Plain torchrun ends with 1 and two screens of its own traceback also where a rank has said in one line that the config
is wrong, and ended with 2. Checking the config in one process beforehand would cost the start-up twice over.
"""

import logging
import os
import sys
import time

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main, parse_args

_BAD_INPUT = 2
_WAIT_FOR_OTHER_MACHINES_S = 3.0


def run() -> int:
    """Run torchrun on this program's arguments; the exit code."""
    # torchrun sets the same where it is not set, and warns.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # It tells which ranks were ended after the first failure; the summary below says what matters of that.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode != _BAD_INPUT:
            print(error, file=sys.stderr)
        elif parse_args(sys.argv[1:]).nnodes not in ("1", "1:1"):
            # The other machines' ranks end with 2 too, but a launcher that loses the one it met at ends with an error.
            time.sleep(_WAIT_FOR_OTHER_MACHINES_S)
        # A rank that was killed by signal s has -s; shells call that 128 + s.
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run())
