import pytest

from distsam.errors import InputError, SharedInputError
from distsam.train.agreement import agreed, from_first_rank


def refuse() -> int:
    raise InputError("x: wrong")


def test_a_process_alone_agrees_with_itself() -> None:
    assert agreed(lambda: 3) == from_first_rank(lambda: 3) == 3
    with pytest.raises(InputError, match="x: wrong") as caught:
        agreed(refuse)
    assert not isinstance(caught.value, SharedInputError)
