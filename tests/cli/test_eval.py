"""`ryzjax eval` with a tiny model: flags, the table and the result file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from ryzjax.checkpoint import model_config_from_hf, resolve_source
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.cli.main import main
from ryzjax.data.byte_tokenizer import write_byte_tokenizer
from ryzjax.models.registry import abstract_model
from ryzjax.sharding import Layout, Placement
from tests.adapters import random_adapter
from tests.goldens.make_llama3_tiny import write_checkpoint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to measure; give --tasks, --perplexity FILE, or --kl FILE --reference MODEL"),
        (["--kl", "f.txt"], "--kl is given without --reference"),
        (["--reference", "m"], "--reference is given without --kl"),
        (["--perplexity", "nowhere.txt"], "'nowhere.txt' cannot be read"),
        (["--tasks", "lambada", "--data", "nowhere"], "data folder 'nowhere' does not exist"),
        (["--tasks", "arc", "--data", "."], "task 'arc' is not known"),
        (["--tasks", "lambada", "--limit", "0"], "limit=0 is out of range"),
    ],
)
def test_bad_input_comes_before_the_model(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "no-such-model", *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1


def test_everything_at_once(tmp_path: Path, compile_cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_checkpoint(tmp_path / "model")
    write_byte_tokenizer(model, vocab_size=384)
    text = "".join(chr(97 + (i * i) % 26) for i in range(300))
    (tmp_path / "a.txt").write_text(text)
    rows = [{"text": f"some {word} and {word}"} for word in ("cats", "dogs", "birds")]
    (tmp_path / "lambada_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hella = {"ctx": "a man", "endings": ["runs", "sits"], "label": 1}
    (tmp_path / "hellaswag_val.jsonl").write_text(json.dumps(hella) + "\n")
    output, file = tmp_path / "out.json", str(tmp_path / "a.txt")
    words = ["eval", str(model), "--compile-cache", compile_cache, "--max-sequences", "4", "--max-batch-tokens", "64"]
    words += ["--tasks", "hellaswag,lambada", "--data", str(tmp_path), "--limit", "2", "--sample-seed", "3"]
    words += ["--perplexity", file, "--kl", file, "--reference", str(model), "--output", str(output)]
    words += ["--context-tokens", "100", "--stride-tokens", "50"]
    assert main(words) == 0
    shown = capsys.readouterr()
    for word in ("hellaswag", "acc_norm", "lambada", "a.txt", "bits per byte", "top-1 agreement"):
        assert word in shown.out
    report = json.loads(output.read_text())
    assert report["model"] == str(model) and report["settings"]["engine"]["max_sequences"] == 4
    assert report["settings"]["sample_seed"] == 3
    assert report["tasks"]["lambada"]["n"] == 2 and report["tasks"]["hellaswag"]["n"] == 1
    assert report["tasks"]["lambada"]["options"]["limit"] == 2
    raw = (tmp_path / "lambada_test.jsonl").read_bytes()
    assert report["tasks"]["lambada"]["data_sha256"] == {"lambada_test.jsonl": hashlib.sha256(raw).hexdigest()}
    assert report["kl"]["mean_kl"] == 0.0 and report["kl"]["top1_agreement"] == 1.0
    assert report["kl"]["text_sha256"] == report["perplexity"]["text_sha256"]
    assert report["kl"]["perplexity"] == pytest.approx(report["perplexity"]["perplexity"], rel=1e-4)
    assert report["perplexity"]["tokens"] == 299
    assert {"ryzjax", "jax", "numpy", "python"} <= set(report["versions"])
    assert report["devices"]["count"] == 8 and report["date"].endswith("Z")


def test_an_adapter_is_measured(tmp_path: Path, compile_cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "model")
    write_byte_tokenizer(folder, vocab_size=384)
    source = resolve_source(str(folder))
    model = abstract_model(model_config_from_hf(source.config), Placement(Layout.load("single")))
    write_adapter(tmp_path / "adapter", random_adapter(model.linears, 0), model, base_model="tiny")
    (tmp_path / "a.txt").write_text("some text of a few words " * 4)

    def nll(*words: str) -> float:
        file = str(tmp_path / "out.json")
        base = [
            "eval",
            str(folder),
            "--compile-cache",
            compile_cache,
            "--max-sequences",
            "2",
            "--max-batch-tokens",
            "16",
        ]
        assert main([*base, "--perplexity", str(tmp_path / "a.txt"), "--output", file, *words]) == 0
        return json.loads(Path(file).read_text())["perplexity"]["nll"]

    alone, adapted = nll(), nll("--adapter", str(tmp_path / "adapter"))
    assert abs(adapted - alone) > 1e-3
    assert f"with{tmp_path / 'adapter'}" in "".join(capsys.readouterr().out.split())
    # --adapter may name an adapter of --lora or its folder. Without --adapter the plain model is scored.
    lora = ["--lora", f"measured={tmp_path / 'adapter'}"]
    assert nll(*lora, "--adapter", "measured") == pytest.approx(adapted, abs=1e-6)
    assert nll(*lora, "--adapter", str(tmp_path / "adapter")) == pytest.approx(adapted, abs=1e-6)
    assert nll(*lora) == pytest.approx(alone, abs=1e-6)
    for flags in (["--kl", "f.txt", "--reference", "m"], ["--verify"]):
        assert main(["eval", str(folder), "--adapter", "x", *flags]) == 2
        assert "merge the adapter first" in capsys.readouterr().err
