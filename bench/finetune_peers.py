"""Measures a LoRA training step of RyzJAX against one of peft + torch, on the same random weights and tokens.

    python bench/finetune_peers.py [--shape qwen2.5-0.5b] [--rank 8] [--tokens 512] [--rounds 5]

A step trains on one packed row and includes AdamW. torch runs in bfloat16 and in float32, without gradient
checkpointing. RyzJAX runs its compiled step over a bfloat16 and over an int4 base, with `remat="full"`, its fastest
setting on a CPU. Each engine stays loaded in its own process, and the engines take turns. The table that is printed
shows the median seconds per step, tokens/s and the first losses; the last line compares RyzJAX in bfloat16 with the
faster torch. The figures go to bench/results/finetune-SHAPE.json. This needs the `bench` extra and peft.
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
    """Measures every engine, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", default="qwen2.5-0.5b", help="shape of the model, from shapes.py (default %(default)s)"
    )
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the packed row (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each engine (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch; XLA uses every core")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ryzjax-bench",
        help="folder of the random checkpoint, which is kept for later runs",
    )
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
