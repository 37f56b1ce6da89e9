"""ModelRunner: the weights, the KV cache and the compiled programs. It turns a step plan into tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.batch import KVCache
from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.kv_cache import KVFormat, empty_kv_cache
from ryzjax.serving.device.adapter_memory import AdapterMemory
from ryzjax.serving.device.buckets import Buckets
from ryzjax.serving.device.compiler import compile_all
from ryzjax.serving.device.program import Program, ProgramKey, StepShapes
from ryzjax.serving.device.prompt_programs import gather_program, pool_program, score_program, tile_tokens
from ryzjax.serving.device.sampler_state import SamplerState, history_rows
from ryzjax.serving.device.step import backbone_program, head_program, set_slot_program
from ryzjax.serving.device.step_result import StepResult
from ryzjax.serving.host.packing import StepPacker, uses_history
from ryzjax.serving.host.prompt_tiles import pool_tiles, score_tiles
from ryzjax.serving.host.sequence import Sequence
from ryzjax.serving.host.step_plan import StepPlan
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["InFlightStep", "ModelRunner"]


@dataclass(frozen=True, kw_only=True)
class InFlightStep:
    """A step that the device is running.

    Attributes:
      plan: the plan of the step.
      padded_tokens: the tokens of its bucket.
      result: int32 [rows, RESULT_FIELDS] on the device, or None if no row samples.
      scores: int32 [tile_tokens(), RESULT_FIELDS] for each tile of scored positions.
      totals: float32 [tile_tokens(), E] for each tile of pooled positions.
    """

    plan: StepPlan
    padded_tokens: int
    result: jax.Array | None
    scores: tuple[jax.Array, ...] = ()
    totals: tuple[jax.Array, ...] = ()


class ModelRunner:
    """Runs steps of one model on one mesh. It is not thread-safe; the engine's thread owns it.

    Args:
      model: the abstract model.
      weights: the arrays of `model.weights` by name.
      buckets: the step shapes.
      max_sequences: the most rows of a step, and the number of slots.
      max_context_tokens: the longest sequence, in tokens.
      page_size_tokens: the tokens of a page.
      kv_format: the format of the KV cache. The default is the model's dtype.
      adapters: the slots of adapters. None serves the model without adapters.
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
        self._shapes = StepShapes(
            model=model,
            leaves=tuple(weights[name] for name in model.weights),
            outer={name: weights[name] for name in model.outer_names},
            kv_format=self.kv_format,
            max_sequences=max_sequences,
            page_size_tokens=page_size_tokens,
            tile_tokens=min(tile_tokens(), buckets.mixed[-1]),
        )
        self._packer = StepPacker(
            max_sequences=max_sequences,
            max_pages=-(-max_context_tokens // page_size_tokens),
            has_adapters=adapters is not None,
        )
        self.adapters = None if adapters is None else AdapterMemory(adapters)
        self._programs: dict[ProgramKey, jax.stages.Compiled] = {}
        self._programs_pages = 0
        self._cache: KVCache | None = None
        self._state: SamplerState | None = None
        self._sums: jax.Array | None = None

    @property
    def leaves(self) -> tuple[jax.Array, ...]:
        """The weights, in the order of `model.weights`."""
        return self._shapes.leaves

    @property
    def outer(self) -> dict[str, jax.Array]:
        """The weights outside the layers, by name."""
        return self._shapes.outer

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights on one device."""
        return sum(int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize for a in self._shapes.leaves)

    @property
    def adapter_bytes(self) -> int:
        """The bytes of the slots of adapters on one device."""
        return 0 if self.adapters is None else self.adapters.plan.device_bytes

    def temporary_bytes(self, num_pages: int) -> int:
        """Returns the temporaries of the largest step on one device, as XLA plans them, in bytes.

        They do not grow with the pool (a test holds this), so `num_pages` may be a guess. If it turns out to be right,
        `compile` does not compile these programs again.
        """
        largest = {
            ("mixed", self.buckets.mixed[-1]),
            ("head", self.buckets.sample[-1]),
            ("score", self._shapes.tile_tokens),
        }
        programs = {program.key: program for program in self._programs_for(num_pages) if program.key in largest}
        self._programs = compile_all({key: program.lower for key, program in programs.items()})
        self._programs_pages = num_pages
        return max(_temporaries(program) for program in self._programs.values())

    def allocate(self, num_pages: int) -> None:
        """Creates the KV cache, the sampling state, the sums of pooled hidden states and the slots of adapters."""
        self._cache = empty_kv_cache(
            self.model.config,
            self.model.placement,
            self.kv_format,
            num_pages=num_pages,
            page_size_tokens=self.page_size_tokens,
        )
        if self.adapters is not None:
            self.adapters.allocate()
        shapes = self._shapes.state, self._shapes.sums
        self._state, self._sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)

    def compile(self, on_done: Callable[[ProgramKey], None] = lambda key: None) -> None:
        """Compiles every program. Afterwards, running steps compiles nothing.

        Args:
          on_done: called with the key of each program when it is ready.
        """
        pages = self.cache.k.shape[1]
        programs = self._programs_for(pages)
        same_pool = pages == self._programs_pages
        done = {
            program.key: self._programs[program.key]
            for program in programs
            if program.key in self._programs and (same_pool or not program.depends_on_pool)
        }
        for key in done:
            on_done(key)
        missing = {program.key: program.lower for program in programs if program.key not in done}
        self._programs = done | compile_all(missing, on_done)
        self._programs_pages = pages

    @property
    def program_keys(self) -> list[ProgramKey]:
        """The keys of all programs, the slowest to compile first."""
        return [program.key for program in self._programs_for(num_pages=2)]

    @property
    def programs(self) -> dict[ProgramKey, jax.stages.Compiled]:
        """The compiled programs, for inspection of their memory and collectives."""
        return self._programs

    @property
    def cache(self) -> KVCache:
        """The KV cache after the last dispatched step."""
        if self._cache is None:
            raise RuntimeError("ModelRunner.allocate() must run before the cache is used")
        return self._cache

    def dispatch(self, plan: StepPlan) -> InFlightStep:
        """Starts a step and returns at once. Steps run on the device in the order of dispatch."""
        assert self._state is not None, "allocate() before dispatch()"
        for row in plan.rows:
            if row.admits and uses_history(row.sequence):
                self._load_slot(row.sequence, row.slot)
        decodes = plan.num_decode_rows == len(plan.rows)
        kind: Literal["decode", "mixed"] = "decode" if decodes else "mixed"
        tokens = self.buckets.decode_tokens(plan.num_tokens) if decodes else self.buckets.mixed_tokens(plan.num_tokens)
        packed = self._packer.pack(plan, tokens)
        state = self._state
        adapters = () if self.adapters is None else (self.adapters.blocks,)
        self._cache, hidden, samples, *every = self._programs[kind, tokens](
            self._shapes.leaves, self.cache, state.tokens, packed, *adapters
        )
        scores = self._score(plan, *every) if plan.readings else ()
        totals = self._pool(plan, *every) if plan.readings else ()
        num_samples = plan.num_samples
        if not num_samples:
            return InFlightStep(plan=plan, padded_tokens=tokens, result=None, scores=scores, totals=totals)
        rows = self.buckets.sample_rows(num_samples)
        history, chosen, result = self._programs["head", rows](
            self._shapes.outer, state.history, state.bias, state.tokens, hidden, samples
        )
        self._state = SamplerState(history=history, bias=state.bias, tokens=chosen)
        result.copy_to_host_async()
        return InFlightStep(plan=plan, padded_tokens=tokens, result=result, scores=scores, totals=totals)

    def set_adapter(self, slot: int, adapter: ServedAdapter) -> None:
        """Starts writing an adapter into a slot. Steps that are dispatched afterwards read it."""
        assert self.adapters is not None, "the runner has no slots"
        programs = {kind: self._programs["set_adapter", kind] for kind in self.adapters.plan.kinds}
        self.adapters.write(programs, slot, adapter)

    def read(self, step: InFlightStep) -> StepResult:
        """Waits for a step and copies its tokens, scores and vectors to the host."""
        raw = np.zeros((0, 1), np.int32) if step.result is None else np.asarray(step.result)
        if not step.scores and not step.totals:
            return StepResult(raw)
        scores = np.concatenate([np.asarray(tile) for tile in step.scores]) if step.scores else None
        vectors = [
            np.asarray(step.totals[at // self._shapes.tile_tokens])[at % self._shapes.tile_tokens]
            for at in _last_pooled(step.plan)
        ]
        return StepResult(raw, scores, vectors)

    def _score(self, plan: StepPlan, hidden: jax.Array) -> tuple[jax.Array, ...]:
        """Starts scoring the prompt positions of a step, given its hidden states [T, E]."""
        gather, score = self._programs["gather", hidden.shape[0]], self._programs["score", self._shapes.tile_tokens]
        results = []
        for tile in score_tiles(plan, self._shapes.tile_tokens):
            indices, next_tokens = tile
            result = score(self._shapes.outer, gather(hidden, indices), next_tokens)
            result.copy_to_host_async()
            results.append(result)
        return tuple(results)

    def _pool(self, plan: StepPlan, hidden: jax.Array) -> tuple[jax.Array, ...]:
        """Starts adding the pooled positions of a step to the sums of their slots, given its hidden states [T, E]."""
        gather, pool = self._programs["gather", hidden.shape[0]], self._programs["pool", self._shapes.tile_tokens]
        results = []
        for tile in pool_tiles(plan, self._shapes.tile_tokens, max_sequences=self.max_sequences):
            indices, slots, restarts = tile
            self._sums, totals = pool(self._shapes.outer, self._sums, gather(hidden, indices), slots, restarts)
            results.append(totals)
        return tuple(results)

    def _load_slot(self, sequence: Sequence, slot: int) -> None:
        state = self._state
        assert state is not None
        history, bias = history_rows(sequence, self.model.config.vocab_size)
        new_history, new_bias = self._programs["set_slot", 0](state.history, state.bias, np.int32(slot), history, bias)
        self._state = SamplerState(history=new_history, bias=new_bias, tokens=state.tokens)

    def _programs_for(self, num_pages: int) -> list[Program]:
        """Declares every program that serving needs, the slowest to compile first."""
        shapes, buckets = self._shapes, self.buckets
        adapters = None if self.adapters is None else self.adapters.plan

        def backbone(kind: Literal["decode", "mixed"], tokens: int) -> Program:
            layout = self._packer.layout(tokens)
            return backbone_program(shapes, kind, layout, num_pages=num_pages, adapters=adapters)

        return [
            *(backbone("mixed", tokens) for tokens in reversed(buckets.mixed)),
            *(backbone("decode", tokens) for tokens in reversed(buckets.decode)),
            *(head_program(shapes, rows) for rows in buckets.sample),
            *(gather_program(shapes, tokens) for tokens in buckets.mixed),
            *(() if self.adapters is None else map(self.adapters.program, self.adapters.plan.kinds)),
            score_program(shapes),
            pool_program(shapes),
            set_slot_program(shapes),
        ]


def _last_pooled(plan: StepPlan) -> list[int]:
    """Returns the indices, among the pooled positions of a step, of the last positions of sequences that end."""
    ends = np.cumsum([len(reading.pooled) for reading in plan.readings])
    return [int(end) - 1 for end, r in zip(ends, plan.readings, strict=True) if r.finishes and r.pooled]


def _temporaries(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes
