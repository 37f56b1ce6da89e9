"""Child process of peers.py: llama.cpp through llama-cpp-python's low-level calls. One JSON command and answer a line.

Flash attention is on, keys and values are 16 bits; tokens are chosen greedily from the logits of each step.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np

MAX_BATCH = 8
CHUNK = 512


def main() -> None:
    """Loads argv[1] with argv[2] threads and room for argv[3] tokens a sequence; answers until end of input."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {sys.argv[1]}")
    print(json.dumps({"ready": True, "llama_cpp": llama_cpp.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": measure(model, **json.loads(line))}), flush=True)


def measure(model: object, *, kind: str, batch: int, context: int, steps: int) -> list[float]:
    """Seconds of each decode step at `context`, or of each prefill of `context` tokens."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = batch * (context + steps + 64)
    params.n_seq_max = batch
    params.n_batch = params.n_ubatch = CHUNK
    params.n_threads = params.n_threads_batch = int(sys.argv[2])
    params.flash_attn_type = 1
    engine = llama_cpp.llama_init_from_model(model, params)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    run = _Run(engine, vocab)
    try:
        rng = np.random.default_rng(0)
        prompts = rng.integers(3, vocab, (batch, context))
        if kind == "prefill":
            times = []
            for _ in range(steps):
                run.clear()
                times.append(run.timed_prefill(prompts[0]))
            return times
        tokens = [run.prefill(prompt, sequence) for sequence, prompt in enumerate(prompts)]
        times = []
        for step in range(steps):
            started = time.perf_counter()
            tokens = run.decode(tokens, context + step)
            times.append(time.perf_counter() - started)
        return times
    finally:
        llama_cpp.llama_free(engine)


class _Run:
    """One context."""

    def __init__(self, engine: object, vocab: int):
        self.engine = engine
        self.vocab = vocab
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.engine), True)

    def timed_prefill(self, prompt: np.ndarray) -> float:
        started = time.perf_counter()
        self.prefill(prompt, 0)
        return time.perf_counter() - started

    def prefill(self, prompt: np.ndarray, sequence: int) -> int:
        last = len(prompt) - 1
        for first in range(0, len(prompt), CHUNK):
            part = prompt[first : first + CHUNK]
            self._fill([(int(token), first + i, sequence, first + i == last) for i, token in enumerate(part)])
            self._run()
        return self._chosen(-1)

    def decode(self, tokens: list[int], position: int) -> list[int]:
        self._fill([(token, position, sequence, True) for sequence, token in enumerate(tokens)])
        self._run()
        return [self._chosen(i) for i in range(len(tokens))]

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
