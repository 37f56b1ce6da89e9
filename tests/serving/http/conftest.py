from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.http.harness import Running, ServerFactory, serve


@pytest.fixture
def serving() -> ServerFactory:
    """Starts a server with given HttpConfig settings."""
    return serve


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A server shared by the tests of a module, none of which changes its state."""
    with serve() as running:
        yield running
