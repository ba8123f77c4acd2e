import io

import pytest

from distsam.train.progress import TrainingProgress

ROW = {"train/step": 10, "train/loss": 0.25, "validation/r2": 0.5, "balance/network/norm_deviation": 12.5}
GOAL = "validation/r2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"COLUMNS": "140", "LINES": "40", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def test_plain_lines_name_their_numbers() -> None:
    out = io.StringIO()
    progress = TrainingProgress(10, 0, shown=True, goal_key=GOAL, stream=out)
    progress.tick(5)
    progress.show(ROW)
    progress.close()
    [line] = out.getvalue().splitlines()
    assert line.split() == [
        "step",
        "10/10",
        "loss",
        "0.25",
        "validation",
        "R2",
        "0.5",
        "deviation",
        "12.5",
        "steps/s",
        "-",
    ]


def test_plain_lines_do_not_flood_but_the_last_one_comes() -> None:
    out = io.StringIO()
    progress = TrainingProgress(1000, 0, shown=True, goal_key=GOAL, stream=out)
    for step in range(0, 1001, 10):
        progress.show({**ROW, "train/step": step})
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["0/1000", "1000/1000"]


def test_without_validation_the_training_score_is_shown() -> None:
    out = io.StringIO()
    progress = TrainingProgress(10, 0, shown=True, goal_key=GOAL, stream=out)
    progress.show({**ROW, "validation/r2": None, "train/r2": 0.75})
    assert "train R2      0.75" in out.getvalue()
    assert "validation" not in out.getvalue()


def test_the_score_that_decides_is_shown_under_its_name() -> None:
    out = io.StringIO()
    progress = TrainingProgress(10, 0, shown=True, goal_key="test/accuracy", stream=out)
    progress.show({**ROW, "test/accuracy": 0.875})
    assert "accuracy     0.875" in out.getvalue()


def test_a_terminal_gets_a_bar_with_the_numbers_and_the_time_left(terminal: Terminal) -> None:
    progress = TrainingProgress(10, 0, shown=True, goal_key=GOAL, stream=terminal)
    progress.show(ROW)
    progress.tick(10)
    progress.close()
    assert "10/10" in terminal.getvalue()
    assert "R2 0.5 dev 12.5" in terminal.getvalue()
    assert ":" in terminal.getvalue()


def test_other_ranks_show_nothing(terminal: Terminal) -> None:
    progress = TrainingProgress(10, 0, shown=False, goal_key=GOAL, stream=terminal)
    progress.show(ROW)
    progress.tick(10)
    progress.close()
    assert terminal.getvalue() == ""


def test_the_bar_ends_at_the_last_step(terminal: Terminal) -> None:
    """It stood at 999/1000: the last step came too soon after one that was drawn."""
    progress = TrainingProgress(1000, 0, shown=True, goal_key=GOAL, stream=terminal)
    for step in range(1, 1001):
        progress.tick(step)
    progress.close()
    assert "1000/1000" in terminal.getvalue()
