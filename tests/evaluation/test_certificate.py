"""Certificates: from the command line to /v1/models, verified, and found out when something changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from ryzjax.checkpoint.certificate import CERTIFICATE_FILE, certificate_summary, read_certificate
from ryzjax.checkpoint.source import resolve_source
from ryzjax.cli.main import main
from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.evaluation.certificate import Measurement, measure, verify
from ryzjax.loading.weight_plan import WeightPlan
from ryzjax.native.library import native_refusal


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two texts a model of tiny stories can read: to calibrate on, and to be measured on."""
    folder = tmp_path_factory.mktemp("text")
    story = "Once upon a time there was a little girl named Lily. She loved to play in the park with her dog."
    words = story.split()
    for name, step in (("calibration", 3), ("other", 7)):
        sentences = [" ".join(words[(i * step + j) % len(words)] for j in range(9)) + "." for i in range(220)]
        (folder / f"{name}.txt").write_text(" ".join(sentences))
    return folder / "calibration.txt", folder / "other.txt"


@pytest.fixture(scope="module")
def quantized(stories: Path, text: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "stories-w4"
    calibration, other = text
    words = ["quantize", str(stories), "--out", str(out), "--group-size", "32", "--method", "gptq", "--kv-scales"]
    words += ["--calibration", str(calibration), "--samples", "8", "--sequence-tokens", "128"]
    assert main([*words, "--eval-text", str(other)]) == 0
    return out


def test_it_holds_what_was_done_and_what_that_cost(quantized: Path, stories: Path):
    certificate = read_certificate(quantized)
    assert certificate is not None
    raw = json.loads((quantized / CERTIFICATE_FILE).read_text())
    assert raw["recipe"]["method"] == "gptq" and raw["calibration"]["sequences"] == 8
    assert raw["base_model"]["name"] == str(stories) and len(raw["base_model"]["files"]["model.safetensors"]) == 64
    assert raw["kv_scales"]["kind"] == "fp8_e4m3"
    layers = {layer["name"]: layer for layer in raw["layers"]}
    assert len(layers) == 35
    assert layers["layers.0.mlp.up"]["bits"] == 4 and layers["layers.0.mlp.up"]["output_error"] > 0
    assert "172 in features" in layers["layers.0.mlp.down"]["notes"][0] and layers["layers.0.mlp.down"]["bits"] == 8
    measured = raw["measured"]["divergence"]
    assert 0 < measured["mean_kl"] < 0.5 and 0.5 < measured["top1_agreement"] < 1
    assert set(raw["files"]) == {file.name for file in quantized.glob("*.safetensors")}
    assert "jax" in json.dumps(raw["versions"])


def test_the_summary_has_the_figures_first(quantized: Path):
    certificate = read_certificate(quantized)
    assert certificate is not None
    summary = certificate_summary(certificate)
    assert summary["bits"] == 4 and summary["fallbacks"] == 5 and 4 < float(str(summary["bits_per_weight"])) < 6
    assert float(str(summary["perplexity"])) > float(str(summary["reference_perplexity"])) * 0.9


def test_the_fp8_cache_has_its_scales(quantized: Path, stories: Path):
    from ryzjax.checkpoint.hf.config import model_config_from_hf
    from ryzjax.checkpoint.kv_scales import fp8_kv_scales

    source = resolve_source(str(quantized))
    config = model_config_from_hf(source.config, source.generation)
    scales = fp8_kv_scales(source, config, unit=False)
    assert scales.k.shape == (5, 4) and (scales.k > 0).all() and not (scales.k == 1).any()


def test_verify_finds_the_same_figures(quantized: Path):
    checks = verify(str(quantized))
    assert all(check.is_same for check in checks), [check for check in checks if not check.is_same]
    assert {"divergence.mean_kl", "divergence.top1_agreement"} <= {check.name for check in checks}


def test_verify_finds_a_file_that_changed(quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in quantized.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "model-00003-of-00006.safetensors"
    tensors = dict(load_file(shard))
    name = next(name for name in tensors if name.endswith("up_proj.weight_scale"))
    tensors[name] = tensors[name] * 2
    save_file(tensors, shard)
    assert main(["eval", str(copy), "--verify"]) == 1
    assert "DIFFERS" in capsys.readouterr().out
    checks = {check.name: check for check in verify(str(copy))}
    assert not checks[shard.name].is_same and not checks["divergence.mean_kl"].is_same
    assert checks["model-00001-of-00006.safetensors"].is_same


def test_info_shows_it(quantized: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["info", str(quantized)]) == 0
    out = capsys.readouterr().out
    assert "certificate" in out and "gptq" in out and "mean kl" in out


def test_models_without_one(stories: Path):
    assert read_certificate(stories) is None
    with pytest.raises(ConfigError, match=f"no {CERTIFICATE_FILE}"):
        verify(str(stories))


needs_kernels = pytest.mark.skipif(native_refusal() is not None, reason=f"needs the kernels: {native_refusal()}")


def test_a_float32_model_says_why_int8_activations_were_not_measured(quantized: Path):
    measured = json.loads((quantized / CERTIFICATE_FILE).read_text())["measured"]
    assert measured["settings"]["activations"] == "bf16" and measured["activation_cost"] is None
    assert "float32" in measured["activation_cost_refusal"]


@pytest.fixture(scope="module")
def bfloat16_model(stories: Path, text: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "stories-bf16-w4"
    words = ["quantize", str(stories), "--out", str(out), "--group-size", "32", "--dtype", "bfloat16"]
    assert main([*words, "--eval-text", str(text[1])]) == 0
    return out


@needs_kernels
def test_both_activations_are_certified(bfloat16_model: Path, capsys: pytest.CaptureFixture[str]):
    certificate = read_certificate(bfloat16_model)
    assert certificate is not None
    measured = json.loads((bfloat16_model / CERTIFICATE_FILE).read_text())["measured"]
    cost = measured["activation_cost"]
    assert measured["settings"]["activations"] == "bf16" and measured["activation_cost_refusal"] is None
    assert measured["divergence"]["mean_kl"] == cost["bf16"]["mean_kl"] != cost["int8"]["mean_kl"]
    summary = certificate_summary(certificate)
    assert summary["activations"] == "bf16" and summary["int8_added_kl"] == cost["added_kl"]
    assert summary["int8_activations"] == {
        name: cost["int8"][name] for name in ("mean_kl", "top1_agreement", "perplexity")
    }
    assert main(["info", str(bfloat16_model)]) == 0
    shown = capsys.readouterr().out
    assert "int8 activations: mean kl" in shown and "int8 share of kl" in shown


@needs_kernels
def test_both_activations_are_verified(
    bfloat16_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    checks = {check.name: check for check in verify(str(bfloat16_model))}
    assert all(check.is_same and check.not_checked is None for check in checks.values())
    assert {"divergence.mean_kl", "int8_activations.mean_kl"} <= set(checks)
    # A machine without the kernels checks the main figures, and says what it cannot check.
    monkeypatch.setattr(WeightPlan, "int8_refusal", lambda _: "no kernels today")
    assert main(["eval", str(bfloat16_model), "--verify"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "not checked" in words and "because this machine cannot measure them" in words
    # Main figures with int8 activations cannot be repeated there.
    settings = Measurement(text=str(bfloat16_model / "config.json"), activations="int8", dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"activations='int8' on this machine \(no kernels today\).*'bf16'"):
        measure(str(bfloat16_model), "base", settings)


@needs_kernels
def test_int8_can_be_the_main_figure(bfloat16_model: Path, stories: Path, text: tuple[Path, Path], tmp_path: Path):
    settings = Measurement(text=str(text[1]), dtype="bfloat16", activations="int8")
    measured = json.loads(json.dumps(measure(str(bfloat16_model), str(stories), settings)))
    certificate = json.loads((bfloat16_model / CERTIFICATE_FILE).read_text())
    assert measured["settings"]["activations"] == "int8"
    assert measured["activation_cost"] == certificate["measured"]["activation_cost"]
    assert measured["divergence"]["mean_kl"] == measured["activation_cost"]["int8"]["mean_kl"]
    summary = certificate_summary({**certificate, "measured": measured})
    assert summary["activations"] == "int8" and "bf16_activations" in summary and "int8_activations" not in summary
    for file in bfloat16_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CERTIFICATE_FILE).write_text(json.dumps({**certificate, "measured": measured}))
    checks = {check.name: check for check in verify(str(tmp_path))}
    assert all(check.is_same for check in checks.values()) and "bf16_activations.mean_kl" in checks


def test_certificates_without_activations_were_measured_with_bf16(bfloat16_model: Path, tmp_path: Path):
    certificate = json.loads((bfloat16_model / CERTIFICATE_FILE).read_text())
    del certificate["measured"]["settings"]["activations"]
    certificate["measured"].pop("activation_cost")
    certificate["measured"].pop("activation_cost_refusal")
    for file in bfloat16_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CERTIFICATE_FILE).write_text(json.dumps(certificate))
    assert certificate_summary(certificate)["activations"] == "bf16"
    checks = {check.name: check for check in verify(str(tmp_path))}
    assert all(check.is_same for check in checks.values()) and "divergence.mean_kl" in checks
    assert not any(name.startswith("int8_activations") for name in checks)


def test_auto_activations_are_not_certified():
    with pytest.raises(ConfigError, match=r"activations='auto' cannot be certified; expected 'bf16' or 'int8'"):
        Measurement(activations="auto")  # pyright: ignore[reportArgumentType]


def test_damaged_certificates(tmp_path: Path):
    for text, message in (("{", "cannot be read as JSON"), ("[]", "not a certificate"), ("{}", "not a certificate")):
        (tmp_path / CERTIFICATE_FILE).write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_certificate(tmp_path)


def test_what_is_measured_is_looked_at_before_the_work(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    for words, message in (
        (["--eval-text", str(tmp_path / "none.txt")], "none.txt"),
        (["--tasks", "chess"], "'chess'"),
        (["--kv-scales"], "needs --calibration"),
        (["--method", "gptq"], "needs calibration text"),
        (["--calibration", str(tmp_path / "none.txt")], "no such file"),
    ):
        assert main(["quantize", str(stories), "--out", str(out), *words]) == 2
        assert message in capsys.readouterr().err
        assert not out.exists()
