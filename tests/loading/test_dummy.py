"""Random weights for a model that has only a config.json."""

from __future__ import annotations

import json
from pathlib import Path

from ryzjax import LLM, SamplingParams
from tests.goldens.make_llama3_tiny import CONFIG


def test_a_bare_config_is_enough(tmp_path: Path, compile_cache: str):
    config = tmp_path / "shape.json"
    config.write_text(json.dumps(CONFIG))
    options = {"max_sequences": 2, "max_batch_tokens": 16, "compile_cache": compile_cache}
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    results = []
    for seed in (0, 0, 1):
        with LLM(str(config), load_format="dummy", seed=seed, **options) as llm:
            results.append(llm.generate("héllo", params, use_tqdm=False)[0])
    assert len(results[0].prompt_token_ids) == len("héllo".encode())
    first, again, other = (result.outputs[0].token_ids for result in results)
    assert len(first) == 6 and first == again != other
