"""A LoRA training step, RyzJAX against peft + torch in turn: the same random weights and packed row of 512 tokens.

    python bench/finetune_peers.py [--shape qwen2.5-0.5b] [--rank 8] [--tokens 512] [--rounds 5]

torch runs in bfloat16 and in float32, without gradient checkpointing, the adapter's AdamW included; RyzJAX runs its
compiled step with a bfloat16 and with an int4 base (`remat="full"`, the fastest on a CPU). Each keeps a process of its
own and takes turns. Needs the `bench` extra and peft.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from peer_process import Peer
from record import write_result
from rich.console import Console
from rich.table import Table
from shapes import checkpoint

ENGINES = {"ryzjax bf16": "bfloat16", "ryzjax int4": "int4", "torch bf16": "bfloat16", "torch f32": "float32"}
OURS = "ryzjax bf16"


def main() -> None:
    """Measures, prints a table, writes bench/results/finetune-SHAPE.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ryzjax-bench")
    options = parser.parse_args()
    model = checkpoint(options.shape, options.folder)
    shared = (str(model), str(options.rank), str(options.tokens))
    peers = {
        name: Peer("peer_finetune_ryzjax.py", *shared, kind)
        if name.startswith("ryzjax")
        else Peer("peer_finetune_torch.py", *shared, kind, str(options.threads))
        for name, kind in ENGINES.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    losses: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(options.rounds):
        for name, peer in peers.items():
            answer = peer.ask("step")
            seconds[name].append(answer["seconds"])
            losses[name].append(answer["loss"])
    for peer in peers.values():
        peer.close()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    best_peer = min((name for name in peers if name.startswith("torch")), key=medians.__getitem__)
    ratio = medians[best_peer] / medians[OURS]
    table = Table("engine", "s a step", "tokens/s", "loss of the first steps")
    for name, median in medians.items():
        table.add_row(
            name,
            f"{median:.2f}",
            f"{options.tokens / median:.0f}",
            " ".join(f"{loss:.3f}" for loss in losses[name][:3]),
        )
    Console().print(table)
    print(f"{OURS} is {ratio:.2f} times as fast as {best_peer}")
    write_result(
        f"finetune-{options.shape}",
        {"seconds": seconds, "losses": losses, "medians": medians, "ratio_to": best_peer, "ratio": ratio},
    )


if __name__ == "__main__":
    main()
