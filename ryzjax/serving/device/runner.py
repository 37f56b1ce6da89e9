"""ModelRunner: weights, KV cache and executables; turns a step plan into chosen tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.batch import KVCache
from ryzjax.dims import Int32Array
from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.kv_cache import KVFormat, empty_kv_cache, kv_cache_shapes
from ryzjax.ops.sampling.sampling import PROMPT_BIT, STOP_BIT
from ryzjax.serving.device.adapter_memory import AdapterMemory
from ryzjax.serving.device.buckets import Buckets
from ryzjax.serving.device.compiler import compile_all
from ryzjax.serving.device.prompt_programs import make_gather, make_pool, make_score, tile_tokens
from ryzjax.serving.device.step import SamplerState, StepResult, make_backbone, make_head, set_slot
from ryzjax.serving.host.packing import SAMPLE_FIELDS, StepPacker, uses_history
from ryzjax.serving.host.prompt_tiles import pool_tiles, score_tiles
from ryzjax.serving.host.sequence import Sequence
from ryzjax.serving.host.step_plan import StepPlan
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["InFlightStep", "ModelRunner", "ProgramKey"]

ProgramKey = tuple[Literal["decode", "mixed", "head", "set_slot", "gather", "score", "pool", "set_adapter"], int]


@dataclass(frozen=True, kw_only=True)
class InFlightStep:
    """A step the device works on.

    Attributes:
      plan: what it does.
      padded_tokens: tokens of its bucket.
      result: int32 [rows, RESULT_FIELDS] on the device; None where no row samples.
      scores: int32 [tile_tokens(), RESULT_FIELDS] a tile of scored positions.
      totals: float32 [tile_tokens(), E] a tile of pooled positions.
    """

    plan: StepPlan
    padded_tokens: int
    result: jax.Array | None
    scores: tuple[jax.Array, ...] = ()
    totals: tuple[jax.Array, ...] = ()


class ModelRunner:
    """Runs steps of one model on one mesh. Not thread-safe: the engine's thread owns it.

    Args:
      model: the abstract model.
      weights: name -> array, as `model.weights` lists them.
      buckets: step shapes.
      max_sequences: rows of a step and slots.
      max_context_tokens: longest sequence.
      page_size_tokens: tokens a page.
      kv_format: of the cache; by default the model's dtype.
      adapters: slots for adapters; None serves the model alone.
    """

    def __init__(
        self,
        model: AbstractModel,
        weights: dict[str, jax.Array],
        *,
        buckets: Buckets,
        max_sequences: int,
        max_context_tokens: int,
        page_size_tokens: int,
        kv_format: KVFormat | None = None,
        adapters: SlotPlan | None = None,
    ):
        self.model = model
        self.kv_format = kv_format or KVFormat(dtype=model.config.dtype)
        self.buckets = buckets
        self.max_sequences = max_sequences
        self.page_size_tokens = page_size_tokens
        self._leaves = tuple(weights[name] for name in model.weights)
        self._outer = {name: weights[name] for name in model.outer_names}
        self._packer = StepPacker(
            max_sequences=max_sequences,
            max_pages=-(-max_context_tokens // page_size_tokens),
            has_adapters=adapters is not None,
        )
        self._adapters = None if adapters is None else AdapterMemory(adapters)
        self._programs: dict[ProgramKey, jax.stages.Compiled] = {}
        self._programs_pages = 0
        self._cache: KVCache | None = None
        self._state: SamplerState | None = None
        self._sums: jax.Array | None = None
        self._tile = min(tile_tokens(), buckets.mixed[-1])

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on one device."""
        return sum(int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize for a in self._leaves)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters' slots on one device."""
        return 0 if self._adapters is None else self._adapters.plan.device_bytes

    def temporary_bytes(self, num_pages: int) -> int:
        """Temporaries of the largest step on one device, as XLA plans them.

        They do not grow with the pool (tested), so `num_pages` may be a guess; where it turns out right,
        `compile` need not compile these programs again.
        """
        largest: list[ProgramKey] = [
            ("mixed", self.buckets.mixed[-1]),
            ("head", self.buckets.sample[-1]),
            ("score", self._tile),
        ]
        self._programs = compile_all({key: self._lower(key, num_pages) for key in largest})
        self._programs_pages = num_pages
        return max(_temporaries(program) for program in self._programs.values())

    def allocate(self, num_pages: int) -> None:
        """Makes the KV cache, the sampling state, the sums of pooled hidden states and the adapters' slots."""
        self._cache = empty_kv_cache(
            self.model.config,
            self.model.placement,
            self.kv_format,
            num_pages=num_pages,
            page_size_tokens=self.page_size_tokens,
        )
        if self._adapters is not None:
            self._adapters.allocate()
        shapes = self._state_shape(), self._sums_shape()
        self._state, self._sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)

    def compile(self, on_done: Callable[[ProgramKey], None] = lambda key: None) -> None:
        """Compiles every step shape; after this, running steps compiles nothing."""
        pages = self.cache.k.shape[1]
        done = {key: p for key, p in self._programs.items() if pages == self._programs_pages or key[0] != "mixed"}
        for key in done:
            on_done(key)
        missing = {key: self._lower(key, pages) for key in self.program_keys if key not in done}
        self._programs = done | compile_all(missing, on_done)
        self._programs_pages = pages

    @property
    def program_keys(self) -> list[ProgramKey]:
        """Every program serving needs, the slowest to compile first."""
        buckets = self.buckets
        keys: list[ProgramKey] = []
        for tokens in reversed(buckets.mixed):
            keys.append(("mixed", tokens))
        for tokens in reversed(buckets.decode):
            keys.append(("decode", tokens))
        for rows in buckets.sample:
            keys.append(("head", rows))
        for tokens in buckets.mixed:
            keys.append(("gather", tokens))
        for block in () if self._adapters is None else self._adapters.plan.kinds:
            keys.append(("set_adapter", block))
        return [*keys, ("score", self._tile), ("pool", self._tile), ("set_slot", 0)]

    @property
    def programs(self) -> dict[ProgramKey, jax.stages.Compiled]:
        """The compiled programs, for inspection (memory analysis, collectives)."""
        return self._programs

    @property
    def cache(self) -> KVCache:
        """The KV cache as the last dispatched step leaves it."""
        if self._cache is None:
            raise RuntimeError("ModelRunner.allocate() must run before the cache is used")
        return self._cache

    def dispatch(self, plan: StepPlan) -> InFlightStep:
        """Starts a step and returns at once; steps run on the device in the order of dispatch."""
        assert self._state is not None, "allocate() before dispatch()"
        for row in plan.rows:
            if row.admits and uses_history(row.sequence):
                self._load_slot(row.sequence, row.slot)
        decodes = plan.num_decode_rows == len(plan.rows)
        kind: Literal["decode", "mixed"] = "decode" if decodes else "mixed"
        tokens = self.buckets.decode_tokens(plan.num_tokens) if decodes else self.buckets.mixed_tokens(plan.num_tokens)
        packed = self._packer.pack(plan, tokens)
        state = self._state
        adapters = () if self._adapters is None else (self._adapters.blocks,)
        self._cache, hidden, samples, *every = self._programs[kind, tokens](
            self._leaves, self.cache, state.tokens, packed, *adapters
        )
        scores = self._score(plan, *every) if plan.readings else ()
        totals = self._pool(plan, *every) if plan.readings else ()
        num_samples = plan.num_samples
        if not num_samples:
            return InFlightStep(plan=plan, padded_tokens=tokens, result=None, scores=scores, totals=totals)
        rows = self.buckets.sample_rows(num_samples)
        history, chosen, result = self._programs["head", rows](
            self._outer, state.history, state.bias, state.tokens, hidden, samples
        )
        self._state = SamplerState(history=history, bias=state.bias, tokens=chosen)
        result.copy_to_host_async()
        return InFlightStep(plan=plan, padded_tokens=tokens, result=result, scores=scores, totals=totals)

    def set_adapter(self, slot: int, adapter: ServedAdapter) -> None:
        """Starts writing an adapter into a slot; steps dispatched after it read it there."""
        assert self._adapters is not None, "the runner has no slots"
        programs = {kind: self._programs["set_adapter", kind] for kind in self._adapters.plan.kinds}
        self._adapters.write(programs, slot, adapter)

    def read(self, step: InFlightStep) -> StepResult:
        """Waits for a step and brings its tokens, scores and vectors to the host."""
        raw = np.zeros((0, 1), np.int32) if step.result is None else np.asarray(step.result)
        if not step.scores and not step.totals:
            return StepResult(raw)
        scores = np.concatenate([np.asarray(tile) for tile in step.scores]) if step.scores else None
        vectors = [np.asarray(step.totals[at // self._tile])[at % self._tile] for at in _last_pooled(step.plan)]
        return StepResult(raw, scores, vectors)

    def _score(self, plan: StepPlan, hidden: jax.Array) -> tuple[jax.Array, ...]:
        """Starts scoring a step's prompt positions, given its hidden states [T, E]."""
        gather, score = self._programs["gather", hidden.shape[0]], self._programs["score", self._tile]
        results = []
        for tile in score_tiles(plan, self._tile):
            indices, next_tokens = tile
            result = score(self._outer, gather(hidden, indices), next_tokens)
            result.copy_to_host_async()
            results.append(result)
        return tuple(results)

    def _pool(self, plan: StepPlan, hidden: jax.Array) -> tuple[jax.Array, ...]:
        """Starts adding a step's pooled positions to their slots' sums, given its hidden states [T, E]."""
        gather, pool = self._programs["gather", hidden.shape[0]], self._programs["pool", self._tile]
        results = []
        for tile in pool_tiles(plan, self._tile, max_sequences=self.max_sequences):
            indices, slots, restarts = tile
            self._sums, totals = pool(self._outer, self._sums, gather(hidden, indices), slots, restarts)
            results.append(totals)
        return tuple(results)

    def _load_slot(self, sequence: Sequence, slot: int) -> None:
        state = self._state
        assert state is not None
        history, bias = history_rows(sequence, self.model.config.vocab_size)
        new_history, new_bias = self._programs["set_slot", 0](state.history, state.bias, np.int32(slot), history, bias)
        self._state = SamplerState(history=new_history, bias=new_bias, tokens=state.tokens)

    def _cache_shape(self, num_pages: int) -> KVCache:
        return kv_cache_shapes(
            self.model.config,
            self.model.placement,
            self.kv_format.dtype,
            num_pages=num_pages,
            page_size_tokens=self.page_size_tokens,
        )

    def _state_shape(self) -> SamplerState:
        vocab, slots = self.model.config.vocab_size, self.max_sequences
        return SamplerState._make(
            [
                self._replicated((slots, vocab), jnp.int32),
                self._replicated((slots, vocab), jnp.float32),
                self._replicated((slots,), jnp.int32),
            ]
        )

    def _sums_shape(self) -> jax.ShapeDtypeStruct:
        return self._replicated((self.max_sequences, self.model.config.hidden_size), jnp.float32)

    def _replicated(self, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.model.placement.replicated)

    def _lower(self, key: ProgramKey, num_pages: int) -> Callable[[], jax.stages.Lowered]:
        kind, size = key
        if kind == "head":
            return self._lower_head(size)
        if kind == "set_slot":
            return self._lower_set_slot()
        if kind == "set_adapter":
            assert self._adapters is not None, "only with slots"
            return self._adapters.lower(size)
        if kind == "gather":
            return self._lower_gather(size)
        if kind == "score" or kind == "pool":
            return self._lower_tile(kind, size)
        return self._lower_backbone(kind, size, num_pages=num_pages)

    def _lower_backbone(
        self, kind: Literal["decode", "mixed"], tokens: int, *, num_pages: int
    ) -> Callable[[], jax.stages.Lowered]:
        layout = self._packer.layout(tokens)
        max_query_len = 1 if kind == "decode" else tokens
        plan = None if self._adapters is None else self._adapters.plan
        step = make_backbone(self.model, layout, max_query_len=max_query_len, adapters=plan)
        adapters = () if plan is None else (plan.shapes,)
        cache = self._cache_shape(num_pages)
        replicated = self.model.placement.replicated
        out = (jax.tree.map(lambda array: array.sharding, cache), replicated, replicated)
        if kind == "mixed":
            out = (*out, self._hidden_shape(tokens).sharding)
        return lambda: jax.jit(step, donate_argnums=1, out_shardings=out).lower(
            self._leaves, cache, self._state_shape().tokens, self._replicated((layout.size,), jnp.int32), *adapters
        )

    def _lower_head(self, rows: int) -> Callable[[], jax.stages.Lowered]:
        state = self._state_shape()
        config = self.model.config
        hidden = self._replicated((self.max_sequences, config.hidden_size), jnp.dtype(config.dtype))
        samples = self._replicated((self.max_sequences, len(SAMPLE_FIELDS)), jnp.int32)
        head = make_head(self.model, rows)
        out = self.model.placement.replicated
        return lambda: jax.jit(head, donate_argnums=1, out_shardings=out).lower(
            self._outer, state.history, state.bias, state.tokens, hidden, samples
        )

    def _hidden_shape(self, tokens: int) -> jax.ShapeDtypeStruct:
        """Of a step with chunks: [T, E], split as the model splits tokens."""
        config, shape = self.model.config, (tokens, self.model.config.hidden_size)
        sharding = self.model.placement.sharding(("tokens", None), shape)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype), sharding=sharding)

    def _lower_gather(self, tokens: int) -> Callable[[], jax.stages.Lowered]:
        indices, out = self._replicated((self._tile,), jnp.int32), self.model.placement.replicated
        return lambda: jax.jit(make_gather(self.model), out_shardings=out).lower(self._hidden_shape(tokens), indices)

    def _lower_tile(self, kind: Literal["score", "pool"], size: int) -> Callable[[], jax.stages.Lowered]:
        config = self.model.config
        rows = self._replicated((size, config.hidden_size), jnp.dtype(config.dtype))
        column, out = self._replicated((size,), jnp.int32), self.model.placement.replicated
        if kind == "score":
            return lambda: jax.jit(make_score(self.model), out_shardings=out).lower(self._outer, rows, column)
        return lambda: jax.jit(make_pool(self.model), donate_argnums=1, out_shardings=out).lower(
            self._outer, self._sums_shape(), rows, column, column
        )

    def _lower_set_slot(self) -> Callable[[], jax.stages.Lowered]:
        state = self._state_shape()
        vocab = self.model.config.vocab_size
        rows = self._replicated((vocab,), jnp.int32), self._replicated((vocab,), jnp.float32)
        out = self.model.placement.replicated
        return lambda: jax.jit(set_slot, donate_argnums=(0, 1), out_shardings=out).lower(
            state.history, state.bias, self._replicated((), jnp.int32), *rows
        )


def history_rows(sequence: Sequence, vocab_size: int) -> tuple[Int32Array, np.ndarray]:
    """A slot's history and bias rows from what the sequence has seen (again, after a preemption)."""
    request = sequence.request
    prompt_len = len(request.prompt_token_ids)
    generated = np.asarray(sequence.token_ids[prompt_len:], np.int64)
    history = np.bincount(generated, minlength=vocab_size).astype(np.int32)
    history[np.unique(np.asarray(request.prompt_token_ids))] |= PROMPT_BIT
    history[list(request.stop_token_ids)] |= STOP_BIT
    bias = np.zeros(vocab_size, np.float32)
    for token, value in request.params.logit_bias.items():
        bias[token] = value
    return history, bias


def _last_pooled(plan: StepPlan) -> list[int]:
    """Where the last positions of the sequences that end are among the step's pooled positions."""
    ends = np.cumsum([len(reading.pooled) for reading in plan.readings])
    return [int(end) - 1 for end, r in zip(ends, plan.readings, strict=True) if r.finishes and r.pooled]


def _temporaries(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
