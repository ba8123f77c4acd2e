import io

from rich.console import Console

from distsam.train.progress import TrainingProgress


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=140, soft_wrap=True, highlight=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


ROW = {"train/step": 10, "train/loss": 0.25, "validation/r2": 0.5, "balance/network/norm_deviation": 12.5}


def test_plain_lines_name_their_numbers() -> None:
    out = console(False)
    progress = TrainingProgress(10, 0, shown=True, console=out)
    progress.tick(5)
    progress.show(ROW)
    progress.close()
    [line] = shown(out).splitlines()
    assert line.split() == ["step", "10/10", "loss", "0.25", "R2", "0.5", "deviation", "12.5", "steps/s", "-"]


def test_plain_lines_do_not_flood_but_the_last_one_comes() -> None:
    out = console(False)
    progress = TrainingProgress(1000, 0, shown=True, console=out)
    for step in range(0, 1001, 10):
        progress.show({**ROW, "train/step": step})
    assert [line.split()[1] for line in shown(out).splitlines()] == ["0/1000", "1000/1000"]


def test_without_validation_the_training_r2_is_shown() -> None:
    out = console(False)
    TrainingProgress(10, 0, shown=True, console=out).show({**ROW, "validation/r2": None, "train/r2": 0.75})
    assert "R2      0.75" in shown(out)


def test_a_terminal_gets_a_bar_with_the_numbers_and_the_time_left() -> None:
    out = console(True)
    progress = TrainingProgress(10, 0, shown=True, console=out)
    progress.show(ROW)
    progress.tick(10)
    progress.close()
    assert "10/10" in shown(out)
    assert "dev 12.5" in shown(out)
    assert ":" in shown(out)


def test_other_ranks_show_nothing() -> None:
    out = console(True)
    progress = TrainingProgress(10, 0, shown=False, console=out)
    progress.show(ROW)
    progress.tick(10)
    progress.close()
    assert shown(out) == ""
