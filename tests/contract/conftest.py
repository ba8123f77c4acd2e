"""Tests of an engine that needs a process group run in a process of their own: this one stays without."""

from collections.abc import Iterator
from typing import Any

import pytest
from engines import ENGINES
from rank_pool import RankPool


@pytest.fixture(scope="session")
def one_rank() -> Iterator[RankPool]:
    pool = RankPool(1)
    yield pool
    pool.close()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    arguments: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    engine = ENGINES.get(arguments.get("engine", ""))
    if engine is None or not engine.needs_group:
        return None
    pool = pyfuncitem._request.getfixturevalue("one_rank")
    pool.run(pyfuncitem.function, **arguments)
    return True
