"""PagePool: keeps track of the free KV cache pages. The pages themselves are on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ryzjax.errors import CapacityError, ConfigError

__all__ = ["PADDING_PAGE", "PagePool"]

PADDING_PAGE = 0
"""The page that padding tokens write to. It is never allocated."""


class PagePool:
    """Allocates the pages 1 to `num_pages` - 1. Each page has one owner.

    Args:
      num_pages: the pages of the device's cache, with the padding page.
      page_size_tokens: the tokens of a page.

    Raises:
      ConfigError: `page_size_tokens` is below 1.
      CapacityError: there is no page besides the padding page.
    """

    def __init__(self, *, num_pages: int, page_size_tokens: int):
        if page_size_tokens < 1:
            raise ConfigError(f"page_size_tokens={page_size_tokens} holds no token; expected at least 1")
        if num_pages < 2:
            raise CapacityError(
                f"num_pages={num_pages} leaves no page beside the padding page; expected at least 2. "
                "Give the KV pool more memory"
            )
        self.num_pages = num_pages
        self.page_size_tokens = page_size_tokens
        # A stack, because the page freed last is the most likely to be in a CPU cache. The lowest pages come first.
        self._free = list(range(num_pages - 1, PADDING_PAGE, -1))
        self._is_used = bytearray(num_pages)

    @property
    def num_usable(self) -> int:
        """The number of pages that can be allocated."""
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        """The number of free pages."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """The number of allocated pages."""
        return self.num_usable - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Returns the number of pages for `tokens` tokens."""
        return -(-tokens // self.page_size_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """Allocates `count` pages for one owner. Returns None, and allocates nothing, if fewer are free."""
        if count < 0:
            raise ValueError(f"allocate({count}): expected a count of at least 0")
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_used[page] = 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Frees pages.

        Raises:
          ValueError: a page is not allocated: it was freed twice, is the padding page, or is not in the pool.
        """
        for page in pages:
            if not 0 <= page < self.num_pages or not self._is_used[page]:
                raise ValueError(f"page {page} is freed but not allocated; expected a page of allocate(), freed once")
            self._is_used[page] = 0
            self._free.append(page)

    def check_integrity(self, owned: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless the free and the owned pages together are all pages, each once.

        Args:
          owned: the pages of each owner.
        """
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError(f"a page is free twice: {sorted(self._free)}")
        seen: set[int] = set()
        for pages in owned:
            for page in pages:
                if page in seen:
                    raise AssertionError(f"page {page} has two owners")
                if page in free or not self._is_used[page]:
                    raise AssertionError(f"page {page} is owned and free")
                seen.add(page)
        if PADDING_PAGE in seen or PADDING_PAGE in free:
            raise AssertionError("the padding page is in circulation")
        if len(seen) + len(free) != self.num_usable:
            lost = sorted(set(range(1, self.num_pages)) - seen - free)
            raise AssertionError(f"{len(seen)} owned + {len(free)} free of {self.num_usable} pages; lost: {lost}")
