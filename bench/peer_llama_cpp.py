"""A child process of peers.py: runs llama.cpp through llama-cpp-python's low-level calls.

Flash attention is on, and keys and values have 16 bits. Tokens are chosen greedily from the logits of each step.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

import llama_cpp
import numpy as np
from peer_loop import answer_commands

CHUNK = 512


def main() -> None:
    """Loads the GGUF file argv[1] with argv[2] threads and answers commands until the end of input."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {sys.argv[1]}")
    answer_commands(
        {"llama_cpp": llama_cpp.__version__, "system": llama_cpp.llama_print_system_info().decode().strip()},
        lambda batch, context, room: _Run.begun(model, batch, context, room),
        lambda context, repeats: _prefill_seconds(model, context, repeats),
    )


def _prefill_seconds(model: object, context: int, repeats: int) -> list[float]:
    run = _Run(model, 1, context)
    prompt = run.prompts(1, context)[0]
    times = []
    for _ in range(repeats):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(run.engine), True)
        times.append(run.timed(lambda: run.prefill(prompt, 0)))
    run.close()
    return times


class _Run:
    """A llama.cpp context and the sequences that decode in it."""

    def __init__(self, model: object, sequences: int, longest: int):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * (longest + 64)
        params.n_seq_max = sequences
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = int(sys.argv[2])
        params.flash_attn_type = 1
        self.engine = llama_cpp.llama_init_from_model(model, params)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self.tokens: list[int] = []
        self.position = 0

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.engine)

    def prompts(self, batch: int, context: int) -> np.ndarray:
        return np.random.default_rng(0).integers(3, self.vocab, (batch, context))

    @classmethod
    def begun(cls, model: object, batch: int, context: int, room: int) -> _Run:
        run = cls(model, batch, context + room)
        run.tokens = [run.prefill(prompt, i) for i, prompt in enumerate(run.prompts(batch, context))]
        run.position = context
        return run

    def seconds(self, steps: int) -> list[float]:
        return [self.timed(self.decode) for _ in range(steps)]

    def timed(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    def prefill(self, prompt: np.ndarray, sequence: int) -> int:
        last = len(prompt) - 1
        for first in range(0, len(prompt), CHUNK):
            part = prompt[first : first + CHUNK]
            self._fill([(int(token), first + i, sequence, first + i == last) for i, token in enumerate(part)])
            self._run()
        return self._chosen(-1)

    def decode(self) -> None:
        self._fill([(token, self.position, sequence, True) for sequence, token in enumerate(self.tokens)])
        self._run()
        self.tokens = [self._chosen(i) for i in range(len(self.tokens))]
        self.position += 1

    def _fill(self, entries: list[tuple[int, int, int, bool]]) -> None:
        self.batch.n_tokens = len(entries)
        for i, (token, position, sequence, wants_logits) in enumerate(entries):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wants_logits

    def _run(self) -> None:
        status = llama_cpp.llama_decode(self.engine, self.batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _chosen(self, index: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.engine, index)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: object) -> None:
    del level, text, data


if __name__ == "__main__":
    main()
