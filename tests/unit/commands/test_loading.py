import gc
from collections.abc import Iterator

import pytest

from distsam.commands.loading import begin_loading, end_loading


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_the_collector_rests_while_things_are_loaded_and_works_again_while_they_run() -> None:
    begin_loading()
    assert not gc.isenabled()
    end_loading()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


def test_a_process_that_never_switched_it_off_is_left_as_it_is() -> None:
    """Called from a program of the user's, a command must not keep that program's garbage for ever."""
    end_loading()
    assert gc.get_freeze_count() == 0
