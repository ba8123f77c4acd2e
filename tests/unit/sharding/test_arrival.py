"""Ranks that come, and ranks that do not: threads around one store in place of processes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from distsam.errors import InputError, SharedInputError
from distsam.sharding.arrival import named, start_timeout_s, wait_for_all


def outcomes(store: dist.Store, ranks: dict[int, float], world_size: int) -> list[str]:
    """What each of these ranks, which waits so many seconds, ends with; "" for one that goes on."""

    def outcome(rank: int, timeout_s: float) -> str:
        try:
            wait_for_all(store, rank, world_size, timeout_s, time.monotonic() + timeout_s)
        except SharedInputError as error:
            return f"{error.speaker}: {error}"
        return ""

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(outcome, ranks.keys(), ranks.values()))


def test_ranks_that_all_come_go_on() -> None:
    assert outcomes(dist.HashStore(), dict.fromkeys((2, 0, 3, 1), 60.0), 4) == [""] * 4


def test_all_that_came_end_at_once_with_the_same_words_about_those_that_did_not() -> None:
    """Each rank waited its own time, and the last one lost the first, whose process kept the store."""
    before_s = time.monotonic()
    first, *others = outcomes(dist.HashStore(), {4: 60.0, 1: 0.5, 7: 60.0}, 8)
    assert time.monotonic() - before_s < 30
    assert first.startswith("1: ranks 0, 2 to 3, 5 to 6 of 8 did not arrive within the 0.5 s that rank 1 waited; ")
    assert others == [first, first]


def test_a_rank_that_comes_after_the_decision_ends_too() -> None:
    store = dist.HashStore()
    [early] = outcomes(store, {0: 0.1}, 2)
    assert early.startswith("0: rank 1 of 2 did not arrive within")
    assert outcomes(store, {1: 60.0}, 2) == [early]


def test_each_rank_sends_four_messages_however_many_there_are() -> None:
    """A list of who is there that each rank reads is a million messages on 1,024 ranks."""

    class Counted(dist.HashStore):
        calls: list[str]

        def append(self, key: str, value: str) -> None:
            self.calls.append("append")
            super().append(key, value)

        def add(self, key: str, amount: int) -> int:
            self.calls.append("add")
            return super().add(key, amount)

        def wait(self, *args: object) -> None:
            self.calls.append("wait")
            super().wait(*args)

        def get(self, key: str) -> bytes:
            self.calls.append("get")
            return super().get(key)

    store = Counted()
    store.calls = []
    assert outcomes(store, dict.fromkeys(range(16), 60.0), 16) == [""] * 16
    assert sorted(store.calls) == sorted(["append", "add", "wait", "get"] * 16)


@pytest.mark.parametrize(
    ("ranks", "text"), [([3], "rank 3"), ([0, 1], "ranks 0 to 1"), ([1, 4, 5, 6, 9], "ranks 1, 4 to 6, 9")]
)
def test_ranks_are_named_in_spans(ranks: list[int], text: str) -> None:
    assert named(ranks) == text


def test_the_time_comes_from_the_environment() -> None:
    assert start_timeout_s({}) == 300
    assert start_timeout_s({"DISTSAM_START_TIMEOUT_S": "2.5"}) == 2.5
    for wrong in ("soon", "", "0", "-1", "nan", "inf", "1e6"):
        with pytest.raises(InputError, match=f"DISTSAM_START_TIMEOUT_S: '{wrong}' is no number of seconds from 1 to"):
            start_timeout_s({"DISTSAM_START_TIMEOUT_S": wrong})
