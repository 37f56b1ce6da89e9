"""PagePool: which pages of the KV cache are free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ryzjax.errors import ConfigError

__all__ = ["PagePool"]


class PagePool:
    """Hands out pages 1 to num_pages - 1; page 0 takes the writes of padding and belongs to nobody.

    Args:
      num_pages: pages of the cache, page 0 included.
      page_size_tokens: tokens a page.
    """

    def __init__(self, *, num_pages: int, page_size_tokens: int):
        if num_pages < 2 or page_size_tokens < 1:
            raise ConfigError(
                f"a pool of num_pages={num_pages} of page_size_tokens={page_size_tokens} holds nothing; "
                "expected at least 2 pages (page 0 is padding's) of at least 1 token"
            )
        self.page_size_tokens = page_size_tokens
        self.num_usable = num_pages - 1
        # A stack: pages freed last are used first, while they are in the processor's cache.
        self._free = list(range(num_pages - 1, 0, -1))
        self._is_free = [False] + [True] * self.num_usable

    @property
    def num_free(self) -> int:
        """Pages nobody owns."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages somebody owns."""
        return self.num_usable - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_size_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages, or None (and nothing changes) where fewer are free."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_free[page] = False
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Takes pages back. A page that is free already is a bug of ours."""
        for page in pages:
            assert 0 < page <= self.num_usable and not self._is_free[page], f"page {page} freed twice or never existed"
            self._is_free[page] = True
            self._free.append(page)

    def check_integrity(self, owned: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless free + owned = all, each page once."""
        used = [page for pages in owned for page in pages]
        assert len(used) == len(set(used)), "a page has two owners"
        assert not any(self._is_free[page] for page in used), "an owned page is on the free list"
        assert len(self._free) == len(set(self._free)) == sum(self._is_free), "the free list is inconsistent"
        assert len(used) + len(self._free) == self.num_usable, (
            f"{self.num_usable} pages: {len(self._free)} free + {len(used)} owned; some are lost"
        )
