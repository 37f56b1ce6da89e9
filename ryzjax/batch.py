"""The pytrees that cross the jit boundary: the KV cache, the tokens of a step, and packed sequences without a cache.

The batch of a step is flat: T tokens of R rows, one row a sequence, without padding between rows. Decode rows, with one
token each, come first, so that token i belongs to row i. Rows with a prefill chunk follow.

    rows     [ decode | decode | decode |   chunk of A    |  chunk of B  | unused ]
    tokens   [   0    |   1    |   2    | 3 4 5 6 7 8 9 . | . . . . . .  | padding ]
             0                  num_decode_rows                          query_start + query_len
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float, Int, UInt

__all__ = ["KVCache", "SegmentBatch", "TokenBatch"]


class KVCache(NamedTuple):
    """Keys and values of every layer, in pages. The cache is donated to each step and updated in place.

    Padding tokens write to page 0, which belongs to no sequence. The dtype of `k` and `v` says how numbers are stored
    (`ops.attention.kv_pages`): float32; uint16 for the bits of bfloat16; int8 with a scale for each token and head,
    which is stored as the bits of a bfloat16; or uint8 for the bits of a float8 e4m3 with one scale for each layer and
    head.
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
        """The tokens of a page."""
        return self.k.shape[3]


class TokenBatch(NamedTuple):
    """The tokens of a step, and the pages of their sequences.

    Attributes:
      token_ids: the token ids. Padding may hold any id.
      positions: the position of each token in its sequence; 0 in padding.
      rope_lengths: the sequence length of each token for length-dependent RoPE scalings (`layers.rope`).
      write_page, write_offset: the page and offset of each token's key and value; page 0 for padding.
      page_table: the pages of each row, in order; 0 past its end.
      query_start, query_len: the start and length of each row in the flat tokens; 0 for unused rows.
      context_len: the tokens of each row in the cache, those of this step included.
      num_decode_rows, num_rows: rows [0, num_decode_rows) decode; rows [0, num_rows) are in use.
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
    """Whole sequences packed into rows, for training and scoring without a cache.

    Attributes:
      token_ids: the token ids. Padding may hold any id.
      positions: the position of each token in its sequence; 0 in padding.
      segment_ids: runs of equal ids are one sequence. 0 is padding.
    """

    token_ids: Int[Array, "R C"]
    positions: Int[Array, "R C"]
    segment_ids: Int[Array, "R C"]
