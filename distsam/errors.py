"""What can go wrong in a way that its user can mend; every room may raise these, only the command line prints them."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the key or file, its value, and what would be right. The command line prints it
    without a traceback and exits with 2.
    """


class SharedInputError(InputError):
    """An InputError that every rank raises together, so that one of them is enough to say it."""


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient; the weights are the last finite ones."""


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are untouched."""
