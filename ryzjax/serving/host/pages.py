"""PagePool: which pages of the KV cache are free. Pure bookkeeping; the pages themselves are on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ryzjax.errors import CapacityError, ConfigError

__all__ = ["PADDING_PAGE", "PagePool"]

PADDING_PAGE = 0
"""Takes the writes of padding tokens; never handed out."""


class PagePool:
    """Hands out pages 1 to `num_pages` - 1.

    A page has one owner. Sharing (a prefix cache) fits in here: a count a page instead of a flag, with
    `free` giving a page back at zero.

    Args:
      num_pages: pages of the device's cache, the padding page included.
      page_size_tokens: tokens a page.

    Raises:
      ConfigError: a page holds no token.
      CapacityError: no page is left beside the padding page.
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
        # A stack: the page freed last is the likeliest to be in a cache still. Lowest pages first at the start.
        self._free = list(range(num_pages - 1, PADDING_PAGE, -1))
        self._is_used = bytearray(num_pages)

    @property
    def num_usable(self) -> int:
        """Pages that can be handed out."""
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages that are handed out."""
        return self.num_usable - len(self._free)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_size_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages for one owner, or None (and nothing taken) where fewer are free."""
        if count < 0:
            raise ValueError(f"allocate({count}): expected a count of at least 0")
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_used[page] = 1
        return pages

    def free(self, pages: Iterable[int]) -> None:
        """Takes pages back.

        Raises:
          ValueError: a page is not handed out (freed twice, the padding page, or none of the pool's).
        """
        for page in pages:
            if not 0 <= page < self.num_pages or not self._is_used[page]:
                raise ValueError(f"page {page} is freed but not handed out; expected a page of allocate(), freed once")
            self._is_used[page] = 0
            self._free.append(page)

    def check_integrity(self, owned: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless free and owned pages are together all pages, each once.

        Args:
          owned: the pages of every owner.
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
