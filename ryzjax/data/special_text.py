"""Special tokens that are written in messages stay text: a user cannot write `<|im_end|>` and end the turn.

A chat template renders one string, in which the template's own markers and the same characters in a message look
alike. Before the rendering, `escape` therefore breaks each special token that stands in a message with a random
number, which nobody outside this process knows. The encoder reads what is still whole in the rendered text as special
tokens, takes the numbers out, and encodes the rest as plain text.
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
"""Deeper values are left to the chat template, which refuses them."""


class SpecialText:
    """Escapes special tokens in messages, and encodes prompts that were rendered from escaped messages.

    The escape of a token is the token with the number behind its first character: it survives what templates do to
    text (trim, change of case, JSON). A string that ends with the beginning of a special token has the number at its
    end, so that no token forms across a border. A template that deletes characters from the middle of a message may
    still form a token out of what is left; no known template does that.

    Args:
      backend: the tokenizer.
      special_ids: the tokens that text must not form.
      unknown_id: the token for characters outside the vocabulary, which any text may contain; None where there is none.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_ids: Collection[int], *, unknown_id: int | None):
        added = backend.get_added_tokens_decoder()
        self._backend = backend
        self._unknown_id = unknown_id
        self._tokens = {added[i].content: (i, added[i]) for i in special_ids if i in added and added[i].content}
        # Digits only, which no template and no normalizer changes.
        self._number = _random_digits()
        # The longest first, as the tokenizer matches them.
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
        """A copy of a JSON value in which no string forms a special token; the value itself where none does."""
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
            # The text becomes a token only when the tokenizer normalizes it: anything that makes `is_escaped` true
            # has it encoded as text.
            escaped = re.sub(r"(\S)", rf"\g<1>{self._number}", text, count=1)
        if any(text[-size:] in self._prefixes for size in range(1, min(self._longest_prefix, len(text)) + 1)):
            escaped += self._number
        return escaped

    def is_escaped(self, text: str) -> bool:
        """Whether a text was rendered from messages in which something was escaped."""
        return self._number in text

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text with escapes.

        Raises:
          RequestError: the tokenizer has no other tokens for what was escaped than the special one.
        """
        return self._encode(text, add_special_tokens)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text with escapes, and the characters of that text each was made from. Raises as `encode`."""
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
        # As a batch, which lets other threads run meanwhile.
        [encoding] = literal.backend.encode_batch([plain], add_special_tokens=add_special_tokens)
        self._check(plain, encoding.ids)
        return [literal.originals.get(i, i) for i in encoding.ids], encoding.offsets, segments

    def _check(self, plain: str, ids: Sequence[int]) -> None:
        """Refuses a special token that text became: a model of whole words may have no other token for it."""
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
        """Made when it is first needed: it takes as long as loading the tokenizer."""
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
        # Stands for each special token that the template wrote, and is read as a token in its place.
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
    """A copy of the tokenizer that reads special tokens as text, and each one's twin as a token.

    `twins` is text -> twin, and `originals` is the twin's id -> the special token's id.
    """

    backend: tokenizers.Tokenizer
    twins: Mapping[str, str]
    originals: Mapping[int, int]


class _Segment(NamedTuple):
    """Characters of the escaped text (source) and what the tokenizer is given for them (target)."""

    source: int
    source_size: int
    target: int
    target_size: int

    def source_of(self, target: int) -> int:
        return self.source + min(max(target - self.target, 0), self.source_size)


def _random_digits() -> str:
    return f"{secrets.randbelow(10**24):024}"
