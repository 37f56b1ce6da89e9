"""stories260K as a GGUF file generates the same text as the safetensors, also after converting it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ryzjax import LLM, SamplingParams
from ryzjax.cli.main import main
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import CheckpointError
from tests.checkpoint.gguf_files import add_config, permute, write_gguf

gguf = pytest.importorskip("gguf")
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def stories_gguf(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.numpy import load_file

    path = tmp_path_factory.mktemp("gguf") / "stories260K.gguf"
    config = json.loads((stories / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    write_with_tokenizer(path, config, load_file(stories / "model.safetensors"), stories)
    return path


def write_with_tokenizer(path: Path, config: dict, weights: dict, stories: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, "Llama", config)
    tokenizer = json.loads((stories / "tokenizer.json").read_text())
    vocab = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    ranks = {
        "".join(merge if isinstance(merge, list) else merge.split(" ")): -i
        for i, merge in enumerate(tokenizer["model"]["merges"])
    }
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocab)
    writer.add_token_scores([float(ranks.get(token, -1e9)) for token in vocab])
    writer.add_token_types([kinds.get(token, 6 if token.startswith("<0x") else 1) for token in vocab])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, value in weights.items():
        mapped = names.get_name(name, try_suffixes=(".weight",))
        if "q_proj" in name or "k_proj" in name:
            value = permute(value, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        writer.add_tensor(mapped, value.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


OPTIONS = {"max_sequences": 4, "max_batch_tokens": 64, "page_size_tokens": 16, "max_context_tokens": 256}
GREEDY = SamplingParams(temperature=0, max_tokens=40)
PROMPTS = ["Once upon a time, there was a little girl", "The dog"]


def stories_told(model: Path, compile_cache: str) -> list[str]:
    with LLM(str(model), dtype="float32", compile_cache=compile_cache, **OPTIONS) as llm:
        return [output.outputs[0].text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def test_generates_what_the_safetensors_generate(
    stories: Path, stories_gguf: Path, tmp_path: Path, compile_cache: str, capsys: pytest.CaptureFixture[str]
):
    expected = stories_told(stories, compile_cache)
    assert stories_told(stories_gguf, compile_cache) == expected
    assert main(["convert", str(stories_gguf), str(tmp_path / "converted"), "--dtype", "float32"]) == 0
    assert "serve it with: ryzjax serve" in capsys.readouterr().out
    assert stories_told(tmp_path / "converted", compile_cache) == expected
    assert main(["convert", str(stories_gguf), str(tmp_path / "converted")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_tokenizer_and_chat_template(stories: Path, stories_gguf: Path, tmp_path: Path):
    ours, theirs = Tokenizer.load(stories_gguf), Tokenizer.load(stories)
    for text in ("Once upon a time", "Lily saw a big red ball.", "\n", "naïve café", "日本"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert (ours.bos_token_id, ours.eos_token_ids) == (1, (2,))
    assert ours.render_chat([{"role": "user", "content": "hi"}]) == "user: hi\n"
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode("Once upon a time") == ours.encode("Once upon a time")
    assert again.render_chat([{"role": "user", "content": "hi"}]) == "user: hi\n"


def test_a_file_without_a_tokenizer(tmp_path: Path):
    from tests.goldens.make_families import VARIANTS, tiny_weights
    from tests.models.test_families import ENTRIES

    shapes = {tensor: tuple(shape) for tensor, shape in ENTRIES["llama"]["shapes"].items()}
    write_gguf(tmp_path / "a.gguf", "Llama", ENTRIES["llama"]["config"], tiny_weights(shapes, VARIANTS["llama"][0]))
    with pytest.raises(CheckpointError, match=r"a.gguf: its tokenizer cannot be rebuilt"):
        Tokenizer.load(tmp_path / "a.gguf")
