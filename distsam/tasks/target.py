"""The user's own task, found by "package.module:factory", and its mistakes kept apart from ours."""

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError, InputError, UserCodeError
from distsam.tasks.task import Goal, Scores, Task, TaskContext

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_METHODS = ("build_model", "microbatches", "loss", "evaluate")
_OURS = str(Path(__file__).parents[1]) + os.sep


def load_target(target: str, context: TaskContext, arguments: Mapping[str, Any] | None = None) -> Task:
    """The task that the user's factory makes: `factory(context, **arguments)`.

    The module is found as by `python -m`: what is installed, and the working folder.

    Args:
        target: "package.module:factory"; any callable that is reached from the module by dots.
        context: given to the factory.
        arguments: the factory's keyword arguments.

    Returns:
        The task; where its methods raise, they raise a UserCodeError, and what they return is checked.

    Raises:
        ArgumentError: about "target": it cannot be imported, is no factory, or makes no task; about "arguments": the
            factory does not take them.
        UserCodeError: the user's code raised. An InputError that it raises itself goes through as it is.
    """
    factory = _find(target)
    arguments = dict(arguments or {})
    _check_call(target, factory, context, arguments)
    with users_code(target):
        try:
            task = factory(context, **arguments)
        except ArgumentError as error:
            # A part of ours that the task has built refuses what it was given by a name of the task's own arguments.
            if error.argument not in arguments:
                raise
            mistake: ArgumentError | None = ArgumentError(f"arguments.{error.argument}", error.problem)
        else:
            mistake = None
    if mistake is not None:
        raise mistake
    _check_members(target, task)
    return cast(Task, _UsersTask(target, task))


def call_target(target: str, arguments: Mapping[str, Any]) -> Any:
    """What the user's factory makes: `factory(**arguments)`; the module is found as by `load_target`.

    Raises:
        ArgumentError: about "target" or "arguments", as `load_target`.
        UserCodeError: the user's code raised.
    """
    factory = _find(target)
    _check_arguments(target, factory, (), dict(arguments))
    with users_code(target):
        return factory(**arguments)


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Exceptions from within become a UserCodeError with the user's frames alone.

    Args:
        what: the code that runs, for the message.
    """
    try:
        yield
    except Exception as error:
        # The user's own refusal is a message already; an ArgumentError is a call of ours that went wrong in their code.
        if isinstance(error, InputError) and not isinstance(error, ArgumentError):
            raise
        raise _user_code_error(what, error) from None


class _UsersTask:
    """The user's task: what it raises is kept as the user's, what it returns is checked."""

    def __init__(self, target: str, task: Any) -> None:
        self.goal: Goal = task.goal
        self._target, self._task = target, task

    def build_model(self) -> nn.Module:
        model = self._call("build_model")
        if not isinstance(model, nn.Module):
            raise self._wrong("build_model", model, "a torch.nn.Module")
        return model

    def microbatches(self, step: int, count: int) -> Sequence[Any]:
        pieces = self._call("microbatches", step, count)
        if not isinstance(pieces, Sequence) or len(pieces) != count:
            raise self._wrong("microbatches", pieces, f"a list of count={count} pieces, not of {_size(pieces)}")
        return pieces

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self._call("loss", model, batch)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise self._wrong("loss", loss, "a scalar floating tensor")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise self._wrong("loss", loss, "what depends on the model's parameters, not detached from them")
        return loss

    def evaluate(self, model: nn.Module) -> Scores:
        with torch.no_grad():
            scores = self._call("evaluate", model)
        if not isinstance(scores, Mapping) or self.goal.key not in scores:
            raise self._wrong("evaluate", scores, f"scores with the goal's key {self.goal.key!r} among them")
        columns = {key.rpartition("/")[2] for key in map(str, scores)}
        for column in self.goal.columns:
            if column not in columns:
                wanted = f"a score of every column of its goal, and {column!r} has none"
                raise self._wrong("evaluate", sorted(map(str, scores)), wanted)
        return {str(key): None if value is None else float(value) for key, value in scores.items()}

    def describe(self) -> str:
        return str(self._call("describe")) if hasattr(self._task, "describe") else f"task {self._target}"

    def __getattr__(self, name: str) -> Any:
        # Of the optional members this has those that the user's task has.
        member = getattr(self._task, name)
        return (lambda *args: self._call(name, *args)) if callable(member) else member

    def _call(self, method: str, *args: Any) -> Any:
        # No users_code here: this runs in every step, and a plain try costs nothing.
        try:
            return getattr(self._task, method)(*args)
        except InputError as error:
            if isinstance(error, ArgumentError) and error.argument != "accumulate":
                raise _user_code_error(f"{self._target}: {method}()", error) from None
            raise
        except Exception as error:
            raise _user_code_error(f"{self._target}: {method}()", error) from None

    def _wrong(self, method: str, given: Any, wanted: str) -> ArgumentError:
        return ArgumentError("target", f"{self._target}: {method}() returned {_shown(given)}; it must return {wanted}")


def _find(target: str) -> Callable[..., Any]:
    if not isinstance(target, str) or not _FORM.fullmatch(target):
        raise ArgumentError("target", f"is {target!r}; it must be 'package.module:factory'")
    module_name, _, path = target.partition(":")
    found: Any = _import(target, module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            nearest = get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; define it in {module_name}"
            raise ArgumentError("target", f"{target}: {getattr(found, '__name__', found)!r} has no {name!r}{hint}")
        found = getattr(found, name)
    if not callable(found):
        raise ArgumentError("target", f"{target} is {_shown(found)}; it must be a function")
    return cast(Callable[..., Any], found)


def _import(target: str, module_name: str) -> Any:
    # A console script, unlike `python -m`, does not look into the working folder. Last, so that it hides nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _user_code_error(target, error) from None  # a module that the user's own imports
        raise ArgumentError(
            "target",
            f"{target}: there is no module {error.name!r}; install it, or start in the folder that holds it",
        ) from None
    except Exception as error:
        raise _user_code_error(f"{target}: import of {module_name}", error) from None


def _check_call(target: str, factory: Callable[..., Any], context: TaskContext, arguments: dict[str, Any]) -> None:
    try:
        inspect.signature(factory).bind_partial(context)
    except TypeError:
        signature = inspect.signature(factory)
        raise ArgumentError("target", f"{target}{signature} takes no context; it must take it first") from None
    except ValueError:
        pass  # some callables in C tell no signature
    _check_arguments(target, factory, (context,), arguments)


def _check_arguments(
    target: str, factory: Callable[..., Any], first: tuple[Any, ...], arguments: dict[str, Any]
) -> None:
    unusable = [name for name in arguments if not isinstance(name, str)]
    if unusable:
        raise ArgumentError("arguments", f"has the name {unusable[0]!r}; every name must be a text")
    try:
        signature = inspect.signature(factory)
    except ValueError:
        return
    try:
        signature.bind(*first, **arguments)
    except TypeError as error:
        raise ArgumentError("arguments", f"{error}; {target} takes {signature}") from None


def _check_members(target: str, task: Any) -> None:
    missing = [name for name in ("goal", *_METHODS) if not hasattr(task, name)]
    missing += [name for name in _METHODS if name not in missing and not callable(getattr(task, name))]
    if missing:
        raise ArgumentError("target", f"{target} made {_shown(task)}, which is no task: it lacks {', '.join(missing)}")
    if not isinstance(task.goal, Goal):
        raise ArgumentError(
            "target", f"{target}: the goal of its task is {_shown(task.goal)}; it must be a distsam.Goal"
        )


def _size(pieces: Any) -> str:
    return str(len(pieces)) if isinstance(pieces, Sequence) else "another kind"


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    article = "an" if type(value).__name__[0] in "aeiou" else "a"
    return f"{article} {type(value).__name__}, {text if len(text) <= 60 else text[:57] + '...'}"


def _user_code_error(what: str, error: Exception) -> UserCodeError:
    first_line = (str(error).splitlines() or [""])[0]
    shown = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    frames = _from_user_code(error.__traceback__)
    report = traceback.TracebackException(type(error), error, frames)
    return UserCodeError(f"{what} raised {shown}", "".join(report.format()))


def _from_user_code(frames: TracebackType | None) -> TracebackType | None:
    """The frames from the first on that is neither ours nor the import system's."""
    while frames is not None:
        file = frames.tb_frame.f_code.co_filename
        if not file.startswith((_OURS, "<frozen importlib")) and file != import_module.__code__.co_filename:
            break
        frames = frames.tb_next
    return frames
