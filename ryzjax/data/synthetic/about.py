"""Questions about RyzJAX, with short answers that are true for this version."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange

__all__ = ["FACTS", "about"]

FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("What is RyzJAX?", "Tell me about RyzJAX.", "What does RyzJAX do?", "Explain RyzJAX."),
        "RyzJAX is a JAX and Flax system that trains and serves language models, on CPUs and GPUs.",
    ),
    (
        ("How do I start the server?", "How do I serve a model?", "Which command serves a model?"),
        "Run ryzjax serve MODEL. It listens on port 8000.",
    ),
    (
        ("What does ryzjax serve do without a model?", "Which model is used when none is named?"),
        "The demo model, which comes with RyzJAX.",
    ),
    (
        ("Which port does the server use?", "What is the default port?", "Where does the server listen?"),
        "Port 8000 on 127.0.0.1; --port sets another.",
    ),
    (
        ("How do I chat with a model?", "Which command starts a chat?", "How can I chat in the terminal?"),
        "Run ryzjax chat MODEL.",
    ),
    (
        ("How do I generate text?", "Which command generates text?", "How do I complete a prompt?"),
        'Run ryzjax generate MODEL --prompt "Once upon a time".',
    ),
    (
        ("How do I measure a model?", "How do I evaluate a model?", "Which command runs benchmarks of a model?"),
        "Run ryzjax eval MODEL --tasks hellaswag,mmlu.",
    ),
    (
        ("How do I quantize a model?", "Which command quantizes?", "How do I get a 4-bit model?"),
        "Run ryzjax quantize MODEL --bits 4.",
    ),
    (
        ("How do I convert a GGUF file?", "Which command converts a checkpoint?", "How do I convert a model?"),
        "Run ryzjax convert model.gguf converted/.",
    ),
    (
        ("How do I fine-tune a model?", "Which command fine-tunes?", "How do I train an adapter?"),
        "Run ryzjax finetune MODEL. It trains LoRA and QLoRA adapters.",
    ),
    (
        ("How do I train a model from scratch?", "Which command trains from scratch?", "How do I pre-train a model?"),
        "Run ryzjax pretrain --config demo --out demo.",
    ),
    (
        ("How do I merge an adapter?", "Which command merges an adapter?", "How do I put an adapter into the weights?"),
        "Run ryzjax merge. It checks the logits after merging.",
    ),
    (
        ("How do I measure the server's speed?", "Which command measures a server?", "How do I benchmark the server?"),
        "Run ryzjax bench serve --base-url http://127.0.0.1:8000.",
    ),
    (
        ("How do I see what a checkpoint holds?", "Which command shows a model?", "How do I inspect a model?"),
        "Run ryzjax info MODEL.",
    ),
    (
        ("How do I install RyzJAX?", "How do I set up RyzJAX?", "How is RyzJAX installed?"),
        "Run make serve. It creates .venv, installs everything and serves the demo model.",
    ),
    (
        ("How do I run the tests?", "Which command runs the tests?", "How do I test RyzJAX?"),
        "Run make test.",
    ),
    (
        ("Which licence does RyzJAX have?", "What is the licence of RyzJAX?", "Is RyzJAX open source?"),
        "RyzJAX is open source under the Apache-2.0 licence.",
    ),
    (
        ("Which models does RyzJAX support?", "Which model families are supported?", "What models can RyzJAX serve?"),
        "Llama, Mistral, Mixtral, Qwen, Gemma, Phi, SmolLM, OLMo and GPT-OSS.",
    ),
    (
        ("Does RyzJAX need a GPU?", "Can I use RyzJAX without a GPU?", "Does RyzJAX run on a CPU?"),
        "RyzJAX runs on a plain CPU, and by the same code on GPUs.",
    ),
    (
        ("Which API does the server speak?", "Is the server compatible with OpenAI?", "Can I use the openai client?"),
        "The server speaks the OpenAI API, so the openai client works.",
    ),
    (
        ("Which endpoints does the server have?", "Which routes are there?", "What are the endpoints?"),
        "/v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models, /health, /ready, /metrics and /version.",
    ),
    (
        ("What is continuous batching?", "Explain continuous batching.", "What does continuous batching mean?"),
        "Requests join and leave the running batch at any step.",
    ),
    (
        ("What is paged attention?", "Explain KV pages.", "How is the KV cache stored?"),
        "Keys and values lie in pages, which sequences take as they grow.",
    ),
    (
        ("Which checkpoint formats can RyzJAX read?", "Which file formats are supported?", "Can RyzJAX read GGUF?"),
        "Safetensors, GGUF, and directories that ryzjax convert writes.",
    ),
    (
        ("Which quantized formats are supported?", "Can RyzJAX load GPTQ?", "Can RyzJAX load AWQ?"),
        "GPTQ, AWQ, compressed-tensors, fp8, bitsandbytes, and GGUF Q8_0 and Q4_0.",
    ),
    (
        ("How do I use RyzJAX from Python?", "What is the Python API?", "How do I load a model in Python?"),
        "from ryzjax import LLM, then LLM(MODEL).generate(prompts).",
    ),
    (
        ("How do I use int8 weights?", "How do I round the weights on load?", "What does --weights do?"),
        "Give --weights int8, int4 or nf4: a plain checkpoint is rounded as it is loaded.",
    ),
    (
        ("How do I quantize the KV cache?", "What does --kv-dtype do?", "How do I save memory of the KV cache?"),
        "Give --kv-dtype int8. It takes about half the memory of bfloat16.",
    ),
    (
        ("What is a layout?", "How is a model split over devices?", "What does --layout do?"),
        "A layout says how a model is split over devices: single, tp, tp_dp, fsdp_tp, ep or ep_dp.",
    ),
    (
        ("What is LoRA?", "Explain LoRA.", "What does LoRA mean?"),
        "LoRA trains two small matrices beside a frozen weight.",
    ),
    (
        ("What is QLoRA?", "Explain QLoRA.", "What does QLoRA mean?"),
        "QLoRA is LoRA over a frozen base of 4 bits.",
    ),
    (
        ("How do I add an adapter to a running server?", "Can adapters be loaded at run time?"),
        "Post its name and path to /v1/load_lora_adapter; the server does not restart.",
    ),
    (
        ("Which Python versions work?", "Which Python does RyzJAX need?", "Does RyzJAX need Python 3.11?"),
        "Python 3.11 to 3.13.",
    ),
    (
        ("Where is the documentation?", "Where can I read more?", "Where are the docs?"),
        "In README.md and in the folder docs.",
    ),
    (
        ("Who trained the demo model?", "What is the demo model?", "Tell me about the demo model."),
        "The demo model is a tiny chat model that RyzJAX trained from scratch on synthetic rows.",
    ),
)
"""Pairs of (ways to ask a question, its answer)."""

_ALL = tuple((question, answer) for questions, answer in FACTS for question in questions)
_BEFORE = ("Please tell me:", "I have a question.", "One question:", "Quick question:", "Tell me:", "Hello!", "Hi!")
_AFTER = ("Thanks!", "Please be brief.", "Please answer briefly.", "I am new here.", "I forgot.")


def about(draw: Draw) -> Exchange:
    """Draws a question about RyzJAX, alone or inside a longer wording. Held-out items use other wordings."""
    rng = draw.rng
    question, answer = rng.choice(_ALL)
    if draw.split == "train" and rng.random() < 0.6:
        return Exchange(question=question, answer=answer)
    wording = draw.fresh("about", lambda: _wording(draw, question))
    return Exchange(question=wording, answer=answer)


def _wording(draw: Draw, question: str) -> str:
    kind = draw.rng.random()
    before = f"{draw.rng.choice(_BEFORE)} " if kind < 0.7 else ""
    after = f" {draw.rng.choice(_AFTER)}" if kind > 0.4 else ""
    return f"{before}{question}{after}"
