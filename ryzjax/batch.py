"""The pytrees that cross the jit boundary: the KV cache, one step's batch of tokens, whole sequences without a cache.

A step's batch is flat: T tokens of R rows, one row a sequence, without padding between rows. Rows that decode
(one token each) come first, so that token i of a decode row is row i; rows with a prefill chunk follow.

    rows     [ decode | decode | decode |   chunk of A    |  chunk of B  | unused ]
    tokens   [   0    |   1    |   2    | 3 4 5 6 7 8 9 . | . . . . . .  | padding ]
             0                  num_decode_rows                          query_start + query_len
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int, UInt

__all__ = ["KVCache", "SegmentBatch", "TokenBatch"]


class KVCache(NamedTuple):
    """Keys and values of every layer, in pages; donated to each step and updated in place.

    Page 0 takes the writes of padding tokens and belongs to no sequence. The dtype of `k` and `v` says how numbers
    are stored (`ops.kv_pages`): float32; uint16, the bits of bfloat16; int8, with a scale a token and head, itself
    the bits of a bfloat16; uint8, the bits of a float8 e4m3, with one scale a layer and head.
    """

    k: (
        Float[Array, "layers pages kv_heads page_size head_dim"]
        | UInt[Array, "layers pages kv_heads page_size head_dim"]
        | Int[Array, "layers pages kv_heads page_size head_dim"]
    )
    v: (
        Float[Array, "layers pages kv_heads page_size head_dim"]
        | UInt[Array, "layers pages kv_heads page_size head_dim"]
        | Int[Array, "layers pages kv_heads page_size head_dim"]
    )
    k_scale: UInt[Array, "layers pages kv_heads page_size"] | Float[Array, "layers kv_heads"] | None = None
    v_scale: UInt[Array, "layers pages kv_heads page_size"] | Float[Array, "layers kv_heads"] | None = None

    @property
    def page_size(self) -> int:
        """Tokens a page."""
        return self.k.shape[3]


class TokenBatch(NamedTuple):
    """One step's tokens and where their sequences' pages are.

    Attributes:
      token_ids: the tokens; anything in padding.
      positions: of each token in its sequence; 0 in padding.
      rope_lengths: length of each token's sequence as length-dependent RoPE scalings see it (`layers.rope`).
      write_page, write_offset: where each token's key and value go; page 0 for padding.
      page_table: pages of each row, in order; 0 beyond its end.
      query_start, query_len: each row's run in the flat tokens; 0 for unused rows.
      context_len: tokens of each row in the cache, those of this step included.
      num_decode_rows, num_rows: rows [0, num_decode_rows) have one token; rows to num_rows are in use.
    """

    token_ids: Int[Array, " T"]
    positions: Int[Array, " T"]
    rope_lengths: Int[Array, " T"]
    write_page: Int[Array, " T"]
    write_offset: Int[Array, " T"]
    page_table: Int[Array, "R P"]
    query_start: Int[Array, " R"]
    query_len: Int[Array, " R"]
    context_len: Int[Array, " R"]
    num_decode_rows: Int[Array, ""]
    num_rows: Int[Array, ""]


class SegmentBatch(NamedTuple):
    """Whole sequences, packed into rows: what a model is trained on. Nothing is cached.

    Attributes:
      token_ids: anything in padding.
      positions: of each token in its sequence; 0 in padding.
      segment_ids: runs of equal numbers are a sequence; 0 is padding.
    """

    token_ids: Int[Array, "rows S"]
    positions: Int[Array, "rows S"]
    segment_ids: Int[Array, "rows S"]
