"""What can go wrong in a way that its user can mend; every room may raise these, only the command line prints them."""


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the key or file, its value, and what would be right. The command line prints it
    without a traceback and exits with 2.
    """


class ArgumentError(InputError):
    """An InputError about one argument of a call: `argument: problem`.

    Rooms that know no config raise it with the argument's own name; whoever knows by which key the user gave that
    argument (train, for config keys) says it anew with the key. One dialect: `key: what is wrong with its value; what
    would be right`.

    Args:
        argument: name of the parameter, with an index or key behind it where one element is meant: "ranks[1]".
        problem: the value, what is wrong with it, and what would be right.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem


class SharedInputError(InputError):
    """An InputError that every rank raises together, so that one of them is enough to say it."""


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient; the weights are the last finite ones."""


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; those before it are untouched."""
