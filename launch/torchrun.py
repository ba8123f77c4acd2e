"""torchrun, ending as its ranks end: with the exit code of the one that failed first.

Plain torchrun ends with 1 and two screens of its own traceback also where a rank has said in one line that the config
is wrong, and ended with 2. Checking the config in one process beforehand would cost the start-up twice over.
"""

import logging
import os
import sys
import time

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

BAD_INPUT = 2
LAST_WORDS_S = 3.0


def run() -> int:
    """Run torchrun on this program's arguments; the exit code."""
    # Which rank got which signal when the first one failed: the summary below says it too.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    try:
        main()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode != BAD_INPUT:
            print(error, file=sys.stderr)
        elif os.environ.get("NNODES", "1") != "1":
            # The other machines' ranks end with 2 too, but a launcher that loses the one it met at ends with an error.
            time.sleep(LAST_WORDS_S)
        # A rank that was killed by signal s has -s; shells call that 128 + s.
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run())
