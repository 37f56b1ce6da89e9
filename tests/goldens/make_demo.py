"""Makes tests/goldens/demo.json: greedy tokens and log-probabilities of the demo model from transformers.

    pip install torch==2.13.0 && python tests/goldens/make_demo.py

The weights are the checkpoint that comes with the package, computed in float32. The script fails if the two best
tokens of any step are so close that another order of summation could choose the other one.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "ryzjax" / "demo"
NEW_TOKENS = 48
LEAST_MARGIN = 3e-4
"""The smallest difference between the two best log-probabilities that no order of summation can invert."""

TEXTS = (
    "What is 12 + 34?",
    "One day, a girl named Lily found a very old map",
    "The code of the blue box is 4711. The code of",
    "Tom lives in Berlin and works as a",
    '"Hello," said the cat,',
)
CHATS = ("What is 12 + 34?", "Tell me a story.")


def render(message: str) -> str:
    """Renders one user message as the demo model's chat template does."""
    return f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"


def main() -> None:
    """Writes the golden file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    model = AutoModelForCausalLM.from_pretrained(str(MODEL), dtype=torch.float32).eval()
    cases, least = [], float("inf")
    for text, chat in [*((text, None) for text in TEXTS), *((render(chat), chat) for chat in CHATS)]:
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(NEW_TOKENS):
                best = torch.topk(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1), 2)
                margin = float(best.values[0] - best.values[1])
                assert margin > LEAST_MARGIN, f"{text!r}: token {len(ids)} is chosen by {margin:.1e} only"
                least = min(least, margin)
                ids.append(int(best.indices[0]))
            logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        cases.append(
            {
                "prompt": text,
                "chat": chat,
                "prompt_ids": prompt,
                "ids": ids,
                "token_logprobs": [round(float(value), 5) for value in chosen],
            }
        )
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "demo.json").write_text(f'{{"cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{len(cases)} cases of {NEW_TOKENS} tokens; two best tokens differ by {least:.1e} at least")


if __name__ == "__main__":
    main()
