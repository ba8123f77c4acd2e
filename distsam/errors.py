"""What can go wrong in a way that its user can mend; every room may raise these, only the command line prints them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line: the key or file, its value, and what would be right. The command line prints it
    without a traceback and exits with 2.
    """


class ArgumentError(InputError):
    """An InputError about one argument of a call: `argument: problem`.

    Rooms that know no config raise it with the argument's own name; train raises it again with the key by which the
    user gave that argument. The form is always `key: what is wrong with its value; what would be right`.

    Args:
        argument: name of the parameter, with an index or key behind it where one element is meant: "ranks[1]".
        problem: the value, what is wrong with it, and what would be right.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem


@contextmanager
def renaming_all(name: str) -> Iterator[None]:
    """An ArgumentError from within is about `name`, and says which part of it."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(name, f"{error.argument} {error.problem}") from None


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """An ArgumentError from within names the argument as the caller knows it.

    Args:
        names: argument of the called -> what the caller was given it by; other arguments keep their names. An index
            behind the name stays: with {"norms": "init_norms"}, `norms[1]` becomes `init_norms[1]`.
    """
    try:
        yield
    except ArgumentError as error:
        name, bracket, index = error.argument.partition("[")
        if name not in names:
            raise
        raise ArgumentError(f"{names[name]}{bracket}{index}", error.problem) from None


class UserCodeError(InputError):
    """Code that the user gave raised; the message is one line, and the user's own traceback goes with it.

    Args:
        problem: which code raised what.
        user_traceback: as Python prints it, from the first frame of the user's code on, with the exception.
    """

    def __init__(self, problem: str, user_traceback: str) -> None:
        super().__init__(problem)
        self.user_traceback = user_traceback


class SharedInputError(InputError):
    """An InputError that every rank raises together, so that one of them is enough to say it.

    Args:
        problem: what one of the ranks found.
        user_traceback: where that was a UserCodeError, its own.
        speaker: the rank that is to say it.
    """

    def __init__(self, problem: str, user_traceback: str = "", speaker: int = 0) -> None:
        super().__init__(problem)
        self.user_traceback = user_traceback
        self.speaker = speaker


class FirstRankMissing(InputError):
    """Rank 0 cannot be reached; which of the other ranks are there, nobody knows, and so each of them raises it."""


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a non-finite loss or gradient; the weights are those before them."""


class RunIncomplete(RuntimeError):
    """The training is over, but not all of it could be written.

    Args:
        missing: what, and why.
        summary: what the run came to.
    """

    def __init__(self, missing: str, summary: object) -> None:
        super().__init__(f"the run is over, but not all of it is saved: {missing}")
        self.summary = summary
