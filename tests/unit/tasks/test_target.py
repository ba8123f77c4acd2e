"""The user's own task: found by its target, its mistakes told apart from ours."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import distsam
from distsam.errors import ArgumentError, InputError, UserCodeError
from distsam.tasks.target import load_target

README_TASK = Path(__file__).with_name("readme_task.py").read_text()
TASK = """
import distsam, torch
from torch import nn

class Users:
    goal = distsam.Goal("test/loss", higher_is_better=False, columns=("loss",))
    def __init__(self, context, size=3, wrong=None):
        self.context, self.size, self.wrong = context, size, wrong
    def build_model(self):
        return nn.Linear(self.size, 1)
    def microbatches(self, step, count):
        return [torch.ones(1, self.size)] * count
    def loss(self, model, batch):
        return model(batch).square().sum()
    def evaluate(self, model):
        return {"test/loss": float(self.loss(model, torch.ones(1, self.size)))}
"""


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes the user's module into the working folder; what was imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str, name: str = "mine.py") -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    yield write
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("mine", "ratings", "package"):
            del sys.modules[name]


def load(target: str = "mine:Users", **arguments: Any) -> Any:
    return load_target(target, distsam.TaskContext(seed=1), arguments)


def refused(argument: str, *parts: str, target: str = "mine:Users", **arguments: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        load(target, **arguments)
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_the_readme_task_learns_by_the_protocol_alone(users_module: Any) -> None:
    users_module(README_TASK, "ratings.py")
    assert README_TASK.count("\n") < 50
    task = load("ratings:RatingTask", shape=[8, 7, 6], batch_size=90)
    model = task.build_model()
    assert [network.name for network in distsam.core_networks(model)] == ["wide", "chain"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = task.evaluate(model)[task.goal.key]
    for step in range(300):
        optimizer.zero_grad()
        for piece in task.microbatches(step, 2):
            (task.loss(model, piece) / 2).backward()
        optimizer.step()
    assert before < 0.1
    assert task.evaluate(model)[task.goal.key] > 0.9


def test_a_target_may_lie_in_a_package_and_behind_dots_and_takes_its_arguments(users_module: Any) -> None:
    users_module("", "package/__init__.py")
    factory = "\nclass Factory:\n    @staticmethod\n    def make(context, size): return Users(context, size)\n"
    users_module(TASK + factory, "package/inner.py")
    assert load("package.inner:Factory.make", size=5).build_model().in_features == 5


@pytest.mark.parametrize(
    "target", ["mine", "mine.Users", "mine:", ":Users", "a b:c", "mine:Users()", "", "./mine.py:Users"]
)
def test_a_target_of_another_form_is_refused(target: str) -> None:
    refused("target", repr(target), "'package.module:factory'", target=target)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.inner", "mine.inner"])
def test_a_module_that_is_not_there_is_named(users_module: Any, name: str) -> None:
    users_module(TASK)
    refused("target", f"{name}:Users: there is no module 'nowhere" if "nowhere" in name else "no module 'mine.inner'",
            "start in the folder that holds it", target=f"{name}:Users")  # fmt: skip


def test_a_name_that_is_not_there_is_refused_with_the_nearest(users_module: Any) -> None:
    users_module(TASK)
    refused("target", "'mine' has no 'User'", "did you mean 'Users'?", target="mine:User")
    refused("target", "'mine' has no 'qqq'", "define it in mine", target="mine:qqq")


def test_what_is_no_factory_or_makes_no_task_is_refused_naming_what_it_lacks(users_module: Any) -> None:
    users_module(
        TASK + "\nnumber = 3\ndef make(context): return Users(context).build_model()\ndef none(context): pass\n"
    )
    refused("target", "mine:number is an int, 3", target="mine:number")
    refused("target", "a NoneType, None, which is no task: it lacks goal, build_model", target="mine:none")
    refused("target", "a Linear", "lacks goal, build_model, microbatches, loss, evaluate", target="mine:make")


def test_a_member_that_is_no_method_and_a_goal_of_another_type_are_named(users_module: Any) -> None:
    flat = "\ndef flat(context):\n    task = Users(context)\n    task.loss = 3\n    return task\n"
    users_module(TASK + flat + flat.replace("flat", "worded").replace("loss = 3", "goal = 'r2'"))
    refused("target", "it lacks loss", target="mine:flat")
    refused("target", "the goal of its task is a str, 'r2'; it must be a distsam.Goal", target="mine:worded")


def test_arguments_that_the_factory_does_not_take_are_refused_with_its_signature(users_module: Any) -> None:
    users_module(TASK + "\ndef bare(): pass\ndef needy(context, depth): return Users(context)\n")
    refused("arguments", "unexpected keyword argument 'colour'", "mine:Users takes (context, size=3", colour=1)
    refused("arguments", "missing a required argument: 'depth'", target="mine:needy")
    refused("arguments", "multiple values for argument 'context'", context=1)
    refused("target", "mine:bare() takes no context", target="mine:bare")
    with pytest.raises(ArgumentError, match="every name must be a text"):
        load_target("mine:Users", distsam.TaskContext(), {1: 2})  # type: ignore[dict-item]


def users_traceback(target: str = "mine:Users", **arguments: Any) -> tuple[str, str]:
    with pytest.raises(UserCodeError) as caught:
        load(target, **arguments)
    return checked_traceback(caught.value)


def checked_traceback(error: UserCodeError) -> tuple[str, str]:
    assert "\n" not in str(error)
    package = str(Path(distsam.__file__).parent)
    first = next((line for line in error.user_traceback.splitlines() if line.startswith('  File "')), "mine.py")
    assert "mine.py" in first
    assert package not in error.user_traceback
    assert "importlib" not in error.user_traceback
    return str(error), error.user_traceback


@pytest.mark.parametrize(
    ("text", "message", "shown"),
    [
        ("def Users(context):\n    return {}['size']\n", "mine:Users raised KeyError: 'size'", "return {}['size']"),
        (
            "def inner(): raise TypeError('no\\nlines')\ndef Users(context): inner()\n",
            "raised TypeError: no",
            "in inner",
        ),
        (
            "import nothing_like_it\n",
            "ModuleNotFoundError: No module named 'nothing_like_it'",
            "import nothing_like_it",
        ),
        ("1 / 0\n", "mine:Users: import of mine raised ZeroDivisionError", "1 / 0"),
        ("def Users(context:\n", "mine:Users: import of mine raised SyntaxError", "def Users(context:"),
    ],
)
def test_what_the_users_code_raises_keeps_its_traceback_without_ours(
    users_module: Any, text: str, message: str, shown: str
) -> None:
    users_module(text)
    said, traceback = users_traceback()
    assert message in said
    assert shown in traceback


def test_an_input_error_of_the_users_own_needs_no_traceback(users_module: Any) -> None:
    users_module("import distsam\ndef Users(context): raise distsam.InputError('folder: is empty')\n")
    with pytest.raises(InputError, match=r"^folder: is empty$") as caught:
        load()
    assert not isinstance(caught.value, UserCodeError)


def test_a_call_of_ours_that_goes_wrong_in_the_users_code_says_where(users_module: Any) -> None:
    users_module("import distsam\ndef Users(context):\n    return distsam.cp((4, 5), 100)\n")
    with pytest.raises(UserCodeError, match=r"raised ArgumentError: bond_dim: bond 'r' has size 100") as caught:
        load()
    assert "return distsam.cp((4, 5), 100)" in caught.value.user_traceback


METHODS = {
    "build_model": (lambda task: task.build_model(), "a torch.nn.Module"),
    "microbatches": (lambda task: task.microbatches(0, 2), "a list of count=2 pieces"),
    "loss": (lambda task: task.loss(torch.nn.Linear(3, 1), torch.ones(1, 3)), "a scalar floating tensor"),
    "evaluate": (lambda task: task.evaluate(torch.nn.Linear(3, 1)), "the goal's key 'test/loss'"),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_raise_keep_the_users_traceback_too(users_module: Any, name: str) -> None:
    users_module(TASK + f"\nclass Broken(Users):\n    def {name}(self, *args): raise ValueError('mine')\n")
    call, _ = METHODS[name]
    with pytest.raises(UserCodeError, match=rf"mine:Broken: {name}\(\) raised ValueError: mine") as caught:
        call(load("mine:Broken"))
    checked_traceback(caught.value)


@pytest.mark.parametrize("returned", ["None", "[1.0]", "torch.ones(2)", "{}", "torch.tensor(3)"])
@pytest.mark.parametrize("name", METHODS)
def test_methods_that_return_something_else_are_named_with_what_is_wanted(
    users_module: Any, name: str, returned: str
) -> None:
    users_module(TASK + f"\nclass Broken(Users):\n    def {name}(self, *args): return {returned}\n")
    call, wanted = METHODS[name]
    with pytest.raises(ArgumentError) as caught:
        call(load("mine:Broken"))
    assert caught.value.argument == "target"
    assert f"mine:Broken: {name}() returned" in str(caught.value)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_number_of_pieces_stays_an_error_about_accumulate(users_module: Any) -> None:
    users_module(README_TASK, "ratings.py")
    with pytest.raises(ArgumentError, match=r"^accumulate: 4 does not divide batch_size, which is 90"):
        load("ratings:RatingTask", batch_size=90).microbatches(0, 4)


def test_optional_members_of_the_users_task_are_found_and_guarded(users_module: Any) -> None:
    from distsam.tasks.task import describe, identity, num_values, warnings

    users_module(
        TASK + "\nclass Full(Users):\n    def describe(self): return 'ratings'\n"
        "    def warnings(self): return ['few']\n    def identity(self): return 'abc'\n"
        "    def num_values(self): 1 / 0\n"
    )
    plain, full = load(), load("mine:Full")
    assert (describe(plain), list(warnings(plain)), identity(plain), num_values(plain)) == (
        "task mine:Users",
        [],
        "",
        None,
    )
    assert (describe(full), list(warnings(full)), identity(full)) == ("ratings", ["few"], "abc")
    with pytest.raises(UserCodeError, match="ZeroDivisionError"):
        num_values(full)
