"""Train the nano ErnieM from scratch and write its six checkpoints.

    python examples/nano/train.py                     # the committed checkpoints' settings
    python examples/nano/train.py --steps 300 --output /tmp/nano

One encoder learns five tasks in six languages at once, from text that is generated while it trains. The result is
``checkpoints/{base,cls,ner,mc,qa,ie}``, each an ordinary Hugging Face folder with its weights as float16, and with a
task set where the head has a task. Training runs on one core and text generation on another; the seed decides
everything but the rounding of the machine at hand.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from batches import Batches
from network import HEADS, Network, make_config
from task_sets import write_task_sets
from vocabulary import write_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
VOCABULARY_SIZE = 3400
_LOSSES = ("qa", "ner", "cls", "mc", "ie", "seen", "verdict")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, then write the checkpoints and ``training.json`` beside them."""
    args = _parse(argv)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nano-") as scratch:
        tokenizer = Path(scratch)
        write_tokenizer(tokenizer, args.seed, VOCABULARY_SIZE)
        vocabulary = (tokenizer / "vocab.txt").read_text(encoding="utf-8").splitlines()
        network = Network(make_config(len(vocabulary)))
        taken = _train(network, tokenizer, args)
        record = {
            "seed": args.seed,
            **taken,
            "tokens_per_step": args.tokens,
            "learning_rate": args.rate,
            "threads": args.threads,
            "wall_seconds": round(time.monotonic() - started),
        }
        write_checkpoints(network, tokenizer, args.output, record)
    print(f"wrote {len(HEADS)} checkpoints to {args.output}")
    return 0


def write_checkpoints(network: Network, tokenizer: Path, output: Path, record: dict[str, object]) -> None:
    """Write a folder per head; ``output`` is replaced only when all of them are complete."""
    output.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".checkpoints-", dir=output.parent))
    try:
        for head in HEADS:
            folder = fresh / head
            shutil.copytree(tokenizer, folder)
            model = network.checkpoint(head)
            model.config.architectures = [type(model).__name__]
            # The weights are stored in half the space; loading widens them to the dtype that the config names.
            model.config.dtype = "float32"
            model.config.save_pretrained(folder)
            weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "model.safetensors").chmod(0o644)
        write_task_sets(fresh)
        (fresh / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        fresh.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        fresh.rename(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _train(network: Network, tokenizer: Path, args: argparse.Namespace) -> dict[str, int]:
    """Train for ``args.steps`` or ``args.minutes``; return how many batches were used and how many were skipped.

    A batch whose gradient is not finite is skipped: trial runs met such a batch after thousands of good ones.
    """
    optimizer = torch.optim.AdamW(_groups(network), betas=(0.9, 0.98))
    batches = Batches(tokenizer, args.seed, args.tokens, args.steps)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=40)
    means = dict.fromkeys(_LOSSES, 0.0)
    skipped = 0
    started = time.monotonic()
    network.train()
    with tqdm(total=args.steps, unit="step", mininterval=5, file=sys.stdout) as progress:
        for step, batch in enumerate(loader):
            done = max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes))
            if done >= 1:
                return {"steps": step - skipped, "skipped": skipped}
            for group in optimizer.param_groups:
                group["lr"] = args.rate * _schedule(step, done)
            losses = network(batch)
            counts = {task: len(batch.targets.get(task, batch.tags)) for task in losses}
            (sum(losses.values()) / sum(map(len, batch.targets.values()))).backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            if norm.isfinite():
                optimizer.step()
            else:
                skipped += 1
            optimizer.zero_grad()
            for task, loss in losses.items() if norm.isfinite() else ():
                means[task] += 0.02 * (loss.item() / counts[task] - means[task])
            progress.update()
            if step % 50 == 0:
                progress.set_postfix_str(" ".join(f"{task} {mean:.3f}" for task, mean in means.items()))
    raise AssertionError("the stream of batches has no end")


def _schedule(step: int, done: float) -> float:
    """Linear warm-up over 200 steps, then a cosine to a hundredth of the peak; ``done`` goes from 0 to 1."""
    warm = min(1.0, (step + 1) / 200)
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _groups(network: Network) -> list[dict[str, object]]:
    """Decay matrices, not biases and norms."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--minutes", type=float, default=38.0, help="time limit; the rate falls in time for it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a batch, padding included")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--output", type=Path, default=HERE / "checkpoints")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
