"""A model's generation_config.json gives the sampling defaults."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.cli.sampling_flags import SamplingFlags
from ryzjax.errors import ConfigError
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults, sampling_defaults

QWEN: dict[str, object] = {
    "eos_token_id": [1, 2],
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "min_p": None,
    "transformers_version": "4.37.0",
}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (QWEN, {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}),
        ({"eos_token_id": 2, "max_length": 512}, {}),
        ({"do_sample": False}, {"temperature": 0.0}),
        (
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
        ),
        ({"min_p": 0.05, "temperature": 1}, {"min_p": 0.05, "temperature": 1}),
    ],
)
def test_what_a_file_says(generation: dict[str, object], expected: SamplingDefaults) -> None:
    assert sampling_defaults(generation, source="m") == expected


@pytest.mark.parametrize(
    ("generation", "words"),
    [
        ({"temperature": "hot"}, r"temperature='hot' is not a number"),
        ({"temperature": -1}, r"temperature=-1 is out of range"),
        ({"top_k": 2.5}, r"top_k=2\.5 is not an integer"),
        ({"top_p": 0}, r"top_p=0 is out of range"),
        ({"do_sample": False, "min_p": 7}, r"min_p=7 is out of range"),
        ({"do_sample": "no"}, r"do_sample='no'; expected true or false"),
    ],
)
def test_bad_values_are_errors_with_a_remedy(generation: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json of org/m: {words}.*--generation-config none"):
        sampling_defaults(generation, source="org/m")


def test_flags_win_over_the_model_and_the_model_over_the_commands_own() -> None:
    model: SamplingDefaults = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1}
    assert SamplingFlags().params({}) == SamplingParams(max_tokens=256, temperature=0.8)
    expected = SamplingParams(max_tokens=256, temperature=0.6, top_k=20, repetition_penalty=1.1)
    assert SamplingFlags().params(model) == expected
    expected = SamplingParams(max_tokens=9, temperature=0, top_p=0.5, top_k=0, min_p=0.1, repetition_penalty=1.1)
    assert SamplingFlags(max_tokens=9, temperature=0.0, top_p=0.5, top_k=0, min_p=0.1).params(model) == expected


@pytest.fixture(scope="module")
def recommending(tiny_llama3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model whose recommended settings leave only the likeliest token."""
    folder = tmp_path_factory.mktemp("recommending") / "model"
    shutil.copytree(tiny_llama3, folder)
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**generation, "temperature": 0.9, "top_k": 1}))
    return folder


def test_python_callers(recommending: Path, compile_cache: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"max_sequences": 2, "max_batch_tokens": 16, "kv_memory": "1MiB", "compile_cache": compile_cache}
    with caplog.at_level(logging.INFO), LLM(str(recommending), **options) as llm:  # type: ignore[arg-type]
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.9, top_k=1)
        assert any("temperature=0.9, top_k=1" in message for message in caplog.messages)
        prompt = {"prompt_token_ids": [5, 6, 7]}
        greedy, default = (
            llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids  # type: ignore[arg-type]
            for params in (SamplingParams(temperature=0), None)
        )
        assert default == greedy
        # The model's defaults do not apply to settings that a caller builds.
        drawn = SamplingParams(seed=3, ignore_eos=True)
        assert llm.generate(prompt, drawn, use_tqdm=False)[0].outputs[0].token_ids != greedy  # type: ignore[arg-type]
    with LLM(str(recommending), generation_config="none", **options) as llm:  # type: ignore[arg-type]
        assert llm.get_default_sampling_params() == SamplingParams()


def test_a_bad_file_is_reported_before_anything_is_loaded(recommending: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(recommending, folder)
    (folder / "generation_config.json").write_text('{"top_p": 3}')
    with pytest.raises(ConfigError, match=r"top_p=3 is out of range.*--generation-config none"):
        LLM(str(folder), max_sequences=2, max_batch_tokens=16)
