"""A child process of finetune_peers.py: runs a training step of peft + torch."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Runs one training step for each line of input and answers with its seconds and loss.

    The command line gives the model, the rank, the tokens of a row, the dtype and the number of threads.
    """
    path, rank, tokens, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    config = peft.LoraConfig(r=int(rank), lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    vocab = model.config.vocab_size
    ids = torch.tensor(np.random.default_rng(0).integers(3, vocab, (1, int(tokens))))

    def step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    step()
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
