"""Special tokens inside messages stay text, so that a user cannot write `<|im_end|>` and end the turn.

A chat template renders one string. In that string, the markers that the template wrote and the same characters in a
message look alike. Before rendering, `escape` therefore inserts a random number into each special token that a message
contains. Nobody outside this process knows the number. The encoder reads the special tokens that are still whole as
tokens, removes the numbers, and encodes the rest as plain text.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ryzjax.errors import RequestError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["SpecialText"]

_MAX_DEPTH = 64
"""Values nested deeper than this are passed on unchanged. The chat template refuses them."""


class SpecialText:
    """Escapes special tokens in messages, and encodes prompts that were rendered from escaped messages.

    An escaped token has the number after its first character. The escape survives what templates do to text: trimming,
    changing case, and writing JSON. If a string ends with the start of a special token, the number is appended to the
    string, so that no token forms across the end of a message. A template that deletes characters from the middle of a
    message could still form a token from what is left. No known template does that.

    Args:
      backend: the tokenizer.
      special_ids: the ids of the tokens that text must not form.
      unknown_id: the id of the token for characters outside the vocabulary, which any text may contain, or None.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_ids: Collection[int], *, unknown_id: int | None):
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._unknown_id = unknown_id
        self._tokens = {added[i].content: (i, added[i]) for i in special_ids if i in added and added[i].content}
        # The number has only digits, which no template and no normalizer changes.
        self._number = _random_digits()
        # The longest token first, because the tokenizer matches it first.
        words = sorted(self._tokens, key=len, reverse=True)
        patterns = [rf"(?<!\w){re.escape(w)}(?!\w)" if self._tokens[w][1].single_word else re.escape(w) for w in words]
        any_token = "|".join(patterns) or r"(?!)"
        self._begins = re.compile(rf"(?=(?:{'|'.join(map(re.escape, words)) or '(?!)'}))(.)", re.DOTALL)
        self._whole = re.compile(rf"{self._number}|(?:{any_token})(?!{self._number})")
        self._prefixes = frozenset(word[:size] for word in words for size in range(1, len(word)))
        self._longest_prefix = max(map(len, self._prefixes), default=0)
        self._normalizes = backend.normalizer is not None and any(
            token.normalized for _, token in self._tokens.values()
        )

    def escape(self, value: object) -> object:
        """Returns a copy of a JSON value in which no string forms a special token."""
        return self._escape(value, 0)

    def _escape(self, value: object, depth: int) -> object:
        if isinstance(value, str):
            return self._escape_text(value)
        if depth > _MAX_DEPTH:
            return value
        if isinstance(value, Mapping):
            return {key: self._escape(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._escape(item, depth + 1) for item in value]
        return value

    def _escape_text(self, text: str) -> str:
        escaped = self._begins.sub(rf"\g<1>{self._number}", text)
        if self._normalizes and escaped == text and self._begins.search(self._backend.normalizer.normalize_str(text)):
            # The text becomes a special token only after normalization. One number anywhere in the text is enough to
            # have it encoded as text.
            escaped = re.sub(r"(\S)", rf"\g<1>{self._number}", text, count=1)
        if any(text[-size:] in self._prefixes for size in range(1, min(self._longest_prefix, len(text)) + 1)):
            escaped += self._number
        return escaped

    def is_escaped(self, text: str) -> bool:
        """Returns whether a text was rendered from messages in which something was escaped."""
        return self._number in text

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Returns the token ids of a text with escapes.

        Raises:
          RequestError: the tokenizer can encode the escaped text only as the special token.
        """
        return self._encode(text, add_special_tokens)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the token ids of a text with escapes, and the span of characters of each; errors as for `encode`."""
        ids, offsets, segments = self._encode(text, False)
        starts = [segment.target for segment in segments]
        ends = [segment.target + segment.target_size for segment in segments]
        return ids, [
            (
                segments[bisect_right(starts, start) - 1].source_of(start),
                segments[min(bisect_left(ends, end), len(ends) - 1)].source_of(end),
            )
            for start, end in offsets
        ]

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]], list[_Segment]]:
        literal = self._literal
        parts: list[str] = []
        segments: list[_Segment] = []
        source = target = 0
        for found in [*self._whole.finditer(text), None]:
            start, end = (len(text), len(text)) if found is None else found.span()
            twin = "" if found is None or found[0] == self._number else literal.twins[found[0]]
            for size, part in ((start - source, text[source:start]), (end - start, twin)):
                if size:
                    segments.append(_Segment(source, size, target, len(part)))
                    parts.append(part)
                    source, target = source + size, target + len(part)
        plain = "".join(parts)
        # A batch of one, because encoding a batch releases the GIL.
        [encoding] = literal.backend.encode_batch([plain], add_special_tokens=add_special_tokens)
        self._check(plain, encoding.ids)
        return [literal.originals.get(i, i) for i in encoding.ids], encoding.offsets, segments

    def _check(self, plain: str, ids: Sequence[int]) -> None:
        """Refuses a text that became a special token. A whole-word vocabulary may have no other token for it."""
        present = set(ids)
        for text, (token_id, _) in self._tokens.items():
            if token_id in present and token_id != self._unknown_id and text in plain:
                raise RequestError(
                    f"a message contains {text!r}, which this model's tokenizer cannot write as plain text; leave it "
                    "out",
                    param="messages",
                )

    @cached_property
    def _literal(self) -> _Literal:
        """Built on first use, because it takes as long as loading the tokenizer."""
        from tokenizers import AddedToken, Tokenizer

        backend = Tokenizer.from_str(self._backend.to_str())
        # Tokens that end a text are not always marked special.
        backend.add_special_tokens(
            [
                AddedToken(
                    token.content,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=token.normalized,
                    special=True,
                )
                for _, token in self._tokens.values()
                if not token.special
            ]
        )
        backend.encode_special_tokens = True
        # The twin of a special token stands for it in the text, and is encoded as one token.
        twins = {text: _random_digits() for text in self._tokens}
        backend.add_tokens(
            [
                AddedToken(twins[text], lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized)
                for text, (_, token) in self._tokens.items()
            ]
        )
        added = backend.get_added_tokens_decoder()
        originals = {twins[text]: token_id for text, (token_id, _) in self._tokens.items()}
        by_id = {i: originals[token.content] for i, token in added.items() if token.content in originals}
        return _Literal(backend, twins, by_id)


class _Literal(NamedTuple):
    """A copy of the tokenizer that encodes special tokens as text, and the twin of each special token as a token.

    `twins` maps the text of a special token to its twin. `originals` maps the id of a twin to the id of its special
    token.
    """

    backend: tokenizers.Tokenizer
    twins: Mapping[str, str]
    originals: Mapping[int, int]


class _Segment(NamedTuple):
    """A span of the escaped text (source), and the span of the tokenizer's input that replaces it (target)."""

    source: int
    source_size: int
    target: int
    target_size: int

    def source_of(self, target: int) -> int:
        return self.source + min(max(target - self.target, 0), self.source_size)


def _random_digits() -> str:
    return f"{secrets.randbelow(10**24):024}"
