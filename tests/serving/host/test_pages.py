from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ryzjax.errors import CapacityError, ConfigError
from ryzjax.serving.host import PagePool


def test_pages_are_handed_out_from_one_and_the_padding_page_never() -> None:
    pool = PagePool(num_pages=5, page_size_tokens=4)
    assert (pool.num_usable, pool.num_free, pool.num_used) == (4, 4, 0)
    assert pool.allocate(4) == [1, 2, 3, 4]
    assert (pool.num_free, pool.num_used) == (0, 4)


def test_a_short_pool_gives_nothing() -> None:
    pool = PagePool(num_pages=4, page_size_tokens=4)
    assert pool.allocate(2) == [1, 2]
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    assert pool.allocate(0) == []
    with pytest.raises(ValueError, match="at least 0"):
        pool.allocate(-1)


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PagePool(num_pages=2, page_size_tokens=4).pages_for(tokens) == pages


@pytest.mark.parametrize("page", [0, 3, 5, -1])
def test_freeing_what_is_not_handed_out_is_an_error(page: int) -> None:
    pool = PagePool(num_pages=5, page_size_tokens=4)
    pool.allocate(2)
    with pytest.raises(ValueError, match=f"page {page} is freed but not allocated"):
        pool.free([page])


def test_double_free_is_an_error() -> None:
    pool = PagePool(num_pages=5, page_size_tokens=4)
    pages = pool.allocate(1)
    assert pages is not None
    pool.free(pages)
    with pytest.raises(ValueError, match="not allocated"):
        pool.free(pages)


def test_integrity_finds_lost_shared_and_freed_pages() -> None:
    pool = PagePool(num_pages=5, page_size_tokens=4)
    pool.allocate(2)
    pool.check_integrity([[1], [2]])
    with pytest.raises(AssertionError, match=r"lost: \[2\]"):
        pool.check_integrity([[1]])
    with pytest.raises(AssertionError, match="page 1 has two owners"):
        pool.check_integrity([[1, 2], [1]])
    with pytest.raises(AssertionError, match="page 3 is owned and free"):
        pool.check_integrity([[1, 2, 3]])


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(CapacityError, match="num_pages=1"):
        PagePool(num_pages=1, page_size_tokens=4)
    with pytest.raises(ConfigError, match="page_size_tokens=0"):
        PagePool(num_pages=4, page_size_tokens=0)


class PoolMachine(RuleBasedStateMachine):
    """Allocates and frees the pages of owners in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(num_pages=12, page_size_tokens=2)
        self.owned: list[list[int]] = []

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        free = self.pool.num_free
        pages = self.pool.allocate(count)
        assert (pages is None) == (count > free)
        if pages is not None:
            assert len(pages) == count
            self.owned.append(pages)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pool.free(self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1))))

    @invariant()
    def whole(self) -> None:
        self.pool.check_integrity(self.owned)
        assert self.pool.num_used == sum(map(len, self.owned))


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
