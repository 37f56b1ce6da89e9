"""QLoRA in 15 lines: a 4-bit base, an adapter, and both served. Run: python examples/qlora.py MODEL rows.jsonl"""

import sys

from ryzjax import LLM, BaseConfig, DataConfig, LoraConfig, OptimizerConfig, TrainConfig, finetune

model, rows = sys.argv[1:]
result = finetune(
    BaseConfig(model=model, weights="int4"),
    DataConfig(data=(rows,), sequence_tokens=512, eval_fraction=0.1),
    lora=LoraConfig(rank=8, alpha=16),
    optimizer=OptimizerConfig(optimizer="adamw8bit", learning_rate=2e-4),
    train=TrainConfig(out="qlora-run", epochs=1, batch_rows=2),
)
llm = LLM(model, weights="int4", max_loras=1)
llm.load_adapter("mine", result.exported)
print(llm.generate(["Once upon a time"], adapter="mine")[0].outputs[0].text)
