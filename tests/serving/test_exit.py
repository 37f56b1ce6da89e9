"""Ctrl-C, and the interpreter's exit while an engine works, each in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# 64 sequences of 400 tokens, 2 at a time, take longer than the tests wait.
HEADER = """
    import asyncio, sys, threading, time
    from ryzjax import LLM, SamplingParams
    from ryzjax.errors import EngineStoppedError

    llm = LLM(
        sys.argv[1], max_sequences=2, max_batch_tokens=16, page_size_tokens=8, compile_cache=sys.argv[2]
    )
    scheduler = llm.engine.scheduler
    long = SamplingParams(max_tokens=400, ignore_eos=True)
    prompts = [{"prompt_token_ids": [5, 6, 7]}] * 64

    def say_when_busy():
        while not scheduler.num_running:
            time.sleep(0.001)
        print("busy", flush=True)

    def watch():
        threading.Thread(target=say_when_busy, daemon=True).start()

    def until_idle():
        deadline = time.monotonic() + 30
        while not llm.engine.is_idle:
            assert time.monotonic() < deadline, "requests were left running"
            time.sleep(0.005)
        assert scheduler.pool.num_used == 0 and llm.engine.num_open == 0
        llm.engine.scheduler.check_integrity()
"""


def start(script: str, model: Path, compile_cache: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(HEADER) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(model), compile_cache],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Waits for the process. Returns its exit status, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    for words in ("FATAL", "terminate called", "Fatal Python error", "Exception ignored", "Exception in thread"):
        assert words not in err, err
    return process.returncode, out, err


def interrupt_when_busy(process: subprocess.Popen[str], times: int) -> list[str]:
    """Sends SIGINT each time the process says that it is busy. Returns the lines that it wrote up to the last one."""
    assert process.stdout is not None
    lines: list[str] = []
    while lines.count("busy\n") < times:
        line = process.stdout.readline()
        assert line, f"the process ended: {process.communicate()}"
        lines.append(line)
        if line == "busy\n":
            process.send_signal(signal.SIGINT)
    return lines


def test_an_interrupt_aborts_and_the_engine_goes_on(tiny_llama3: Path, compile_cache: str):
    script = """
        calls = [
            lambda: llm.generate(prompts, long, use_tqdm=False),
            lambda: [delta for prompt in prompts for delta in llm.stream(prompt, long)],
            lambda: [llm.embed([{"prompt_token_ids": [5] * 500}] * 64, use_tqdm=False) for _ in range(100)],
        ]
        for call in calls * 2:
            watch()
            try:
                call()
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            until_idle()
            [output] = llm.generate(prompts[0], SamplingParams(max_tokens=3, ignore_eos=True), use_tqdm=False)
            assert len(output.outputs[0].token_ids) == 3
        watch()
        calls[0]()
    """
    process = start(script, tiny_llama3, compile_cache)
    lines = interrupt_when_busy(process, 7)
    status, out, err = finish(process)
    assert lines == ["busy\n", "interrupted\n"] * 6 + ["busy\n"] and out == ""
    # Nothing catches the last one. Python ends by the signal, with only the caller's traceback.
    assert status == -signal.SIGINT
    assert err.count("Traceback") == 1 and err.endswith("KeyboardInterrupt\n")


def test_an_interrupt_where_an_event_loop_runs(tiny_llama3: Path, compile_cache: str):
    # The kernel of a notebook leaves Python's handler in place. asyncio.run installs one that only cancels its task.
    script = """
        import signal

        async def cell():
            handler = signal.getsignal(signal.SIGINT)
            for call in (
                lambda: llm.generate(prompts, long, use_tqdm=False),
                lambda: [delta for prompt in prompts for delta in llm.stream(prompt, long)],
            ):
                watch()
                try:
                    call()
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
                until_idle()
                assert signal.getsignal(signal.SIGINT) is handler

        asyncio.run(cell())
        loop = asyncio.new_event_loop()
        loop.run_until_complete(cell())
        loop.close()
        print("done", flush=True)
    """
    process = start(script, tiny_llama3, compile_cache)
    lines = interrupt_when_busy(process, 4)
    status, out, _ = finish(process)
    assert (lines + out.splitlines(keepends=True)).count("interrupted\n") == 4
    assert out.endswith("done\n") and status == 0


EXITS = {
    "end": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "error": ("raise ValueError('mine')", 1, "ValueError: mine\n"),
    "thread": ("threading.Thread(target=work, daemon=True).start()", 0, ""),
}


@pytest.mark.parametrize("how", EXITS)
def test_the_process_ends_with_its_status_while_the_engine_works(tiny_llama3: Path, compile_cache: str, how: str):
    last_line, status, end_of_stderr = EXITS[how]
    script = f"""
        def work():
            try:
                llm.generate(prompts, long, use_tqdm=False)
            except EngineStoppedError:
                pass

        streams = [llm.stream(prompt, long) for prompt in prompts]
        for stream in streams[:4]:
            next(stream)
        assert scheduler.num_running
        {last_line}
    """
    got, _, err = finish(start(script, tiny_llama3, compile_cache))
    assert got == status, err
    assert err.endswith(end_of_stderr) and err.count("Traceback") == (status == 1)
