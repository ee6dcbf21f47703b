"""Train a small byte-level language model on the CPU, with a mechanism of tilegen in place of attention.

The text is Python's own reference (the module `pydoc_data.topics`, half a megabyte of English that every machine has) or any
file.  The last tenth is held out.  At the end the model writes a little, one byte a step, from its running state, and two
numbers are printed: its bits per byte on the held-out part, and those of a bigram model counted on the same training part.
The exit status is 0 if the model is the better one.

    python examples/train_language_model.py --minutes 2
    python examples/train_language_model.py --file book.txt --steps 2000 --mechanism elementwise_attention
    python examples/train_language_model.py --mechanism seqboat

A layer that chooses its tokens (seqboat) also says how many it activates while it learns, and draws which ones.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Torch's threads and those of the compiled kernels take turns on the same cores.  Left to themselves torch's idle threads spin,
# and on a busy machine that makes a step ten times slower; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from tilegen import mechanisms
from tilegen import nn as layers
from tilegen.torch import provenance

BYTES = 256
MECHANISMS: dict[str, Callable[[int], nn.Module]] = {
    "elementwise_attention": lambda dim: layers.ElementwiseAttention(dim, order=2),
    "seqboat": lambda dim: layers.SeqBoat(dim, window=32, key_dim=dim // 2, value_dim=dim, orders=4),
}
"""Sequence layers by name; each has forward, step and init_state, and `activity` if it chooses among its tokens."""

console = Console(highlight=False, soft_wrap=True)


class Block(nn.Module):
    """A short causal convolution, which tells positions apart, then the mechanism, then a gated feed-forward layer."""

    TAPS = 4

    def __init__(self, dim: int, mechanism: str) -> None:
        super().__init__()
        self.mix_norm, self.feed_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.conv = nn.Conv1d(dim, dim, self.TAPS, groups=dim)
        self.mix = MECHANISMS[mechanism](dim)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, D] -> [B, T, D]."""
        rows = F.pad(self.mix_norm(x).transpose(1, 2), (self.TAPS - 1, 0))
        x = x + self.mix(F.silu(self.conv(rows)).transpose(1, 2))
        return x + self.feed(x)

    def step(self, x: Tensor, state: tuple[Tensor, Any]) -> tuple[Tensor, tuple[Tensor, Any]]:
        """One position `x` [B, D]; the state is the last rows of the convolution's input and the mechanism's own."""
        recent, inner = state
        recent = torch.cat([recent, self.mix_norm(x).unsqueeze(2)], 2)
        y, inner = self.mix.step(F.silu(self.conv(recent).squeeze(2)), inner)
        x = x + y
        return x + self.feed(x), (recent[:, :, 1:], inner)

    def init_state(self, batch: int) -> tuple[Tensor, Any]:
        return torch.zeros(batch, self.conv.in_channels, self.TAPS - 1), self.mix.init_state(batch)

    def feed(self, x: Tensor) -> Tensor:
        gate, value = self.up(self.feed_norm(x)).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class LanguageModel(nn.Module):
    """Bytes in, scores of the next byte out."""

    def __init__(self, dim: int, depth: int, mechanism: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, dim)
        self.blocks = nn.ModuleList(Block(dim, mechanism) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, BYTES)
        nn.init.normal_(self.embed.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.down.weight)

    def forward(self, text: Tensor) -> Tensor:
        """`text` [B, T] int64 -> scores [B, T, 256]."""
        x = self.embed(text)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(self, prompt: bytes, count: int, temperature: float = 0.7) -> bytes:
        """`prompt` and `count` more bytes, by the step form: time and memory of a step do not grow."""
        states = [block.init_state(1) for block in self.blocks]
        text = list(prompt)
        for i in range(len(prompt) + count - 1):
            x = self.embed(torch.tensor([text[i]]))
            for k, block in enumerate(self.blocks):
                x, states[k] = block.step(x, states[k])
            if i >= len(prompt) - 1:
                scores = self.head(self.norm(x))[0] / temperature
                text.append(int(torch.multinomial(scores.softmax(-1), 1)))
        return bytes(text)


def read_text(path: Path | None) -> Tensor:
    """The whole text as bytes, int64."""
    if path is None:
        from pydoc_data.topics import topics

        content = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    else:
        content = path.read_bytes()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).long()


def bigram_bits(train: Tensor, held_out: Tensor) -> float:
    """Bits per byte of the bigram model with add-one-tenth smoothing, counted on `train`."""
    counts = torch.full((BYTES, BYTES), 0.1, dtype=torch.float64)
    counts.view(-1).index_add_(0, train[:-1] * BYTES + train[1:], torch.ones(len(train) - 1, dtype=torch.float64))
    bits = -(counts / counts.sum(1, keepdim=True)).log2()
    return bits[held_out[:-1], held_out[1:]].mean().item()


@torch.no_grad()
def model_bits(model: LanguageModel, text: Tensor, length: int) -> float:
    """Bits per byte of the model, in windows of `length` that each begin without a past."""
    windows = (len(text) - 1) // length
    inputs, targets = (text[i : i + windows * length].view(windows, length) for i in (0, 1))
    pairs = zip(inputs.split(16), targets.split(16), strict=True)
    loss = sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in pairs)
    return loss / targets.numel() / math.log(2)


@torch.no_grad()
def activity(model: LanguageModel, text: Tensor) -> Tensor | None:
    """Which tokens of `text` [B, T] each block activates, bool [depth, B, T]; None when its layers do not choose."""
    if not all(hasattr(block.mix, "activity") for block in model.blocks):
        return None
    given: list[Tensor] = []
    hooks = [block.mix.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for block in model.blocks]
    model(text)
    for hook in hooks:
        hook.remove()
    return torch.stack([block.mix.activity(x) for block, x in zip(model.blocks, given, strict=True)])


def train_model(
    model: LanguageModel, text: Tensor, options: argparse.Namespace
) -> tuple[list[float], list[tuple[int, list[float]]]]:
    """Train until the steps or the minutes are spent.

    Returns
    -------
    The loss of every step in bits per byte, and every fifty steps the share of active tokens in each block.
    """
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98))
    losses: list[float] = []
    rates: list[tuple[int, list[float]]] = []
    start, budget = time.monotonic(), options.minutes * 60
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=options.steps)
        for step in range(options.steps):
            done = max(step / options.steps, (time.monotonic() - start) / budget)
            if done >= 1:
                break
            for group in optimiser.param_groups:
                group["lr"] = options.rate * min(1.0, (step + 1) / 20, 2.5 * (1 - done) + 0.02)
            at = torch.randint(len(text) - options.length - 1, (options.batch,))
            rows = torch.stack([text[i : i + options.length + 1] for i in at])
            loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item() / math.log(2))
            recent = sum(losses[-20:]) / len(losses[-20:])
            bar.update(task, advance=1, description=f"training  {recent:.2f} bits per byte")
            if step % 50 == 0 and (active := activity(model, rows[:, :-1])) is not None:
                rates.append((step, active.float().mean((1, 2)).tolist()))
                shares = ", ".join(f"{rate:.0%}" for rate in rates[-1][1])
                console.print(f"step {step}: {recent:.2f} bits per byte; active tokens in each block: {shares}")
    return losses, rates


def draw(losses: list[float], bigram: float, held_out: float, path: Path) -> None:
    """The loss curve beside both held-out numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(losses, linewidth=0.8, label="training batches")
    axes.axhline(bigram, color="tab:red", linestyle="--", label=f"bigram model, held out: {bigram:.2f}")
    axes.axhline(held_out, color="tab:green", linestyle="--", label=f"this model, held out: {held_out:.2f}")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, 8.2))
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_activity(rates: list[tuple[int, list[float]]], text: bytes, active: Tensor, path: Path) -> None:
    """The share of active tokens while learning, and the tokens of `text` with those dark that each block activates [depth, T]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, figsize=(14, 5), layout="constrained")
    for block in range(len(active)):
        above.plot([step for step, _ in rates], [shares[block] for _, shares in rates], label=f"block {block}")
    above.set(xlabel="step", ylabel="share of active tokens", ylim=(-0.02, 1.02))
    above.legend()
    below.pcolormesh(active.float().numpy(), cmap="Blues", vmin=0, vmax=1.4, edgecolors="white", linewidth=1)
    shown = [chr(byte) if 32 < byte < 127 else "␣" if byte == 32 else "⏎" if byte == 10 else "·" for byte in text]
    below.set_xticks([t + 0.5 for t in range(len(text))], shown, family="monospace")
    below.set_yticks([block + 0.5 for block in range(len(active))], [f"block {block}" for block in range(len(active))])
    below.invert_yaxis()
    figure.savefig(path, dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mechanism", choices=sorted(MECHANISMS), default="elementwise_attention")
    parser.add_argument("--file", type=Path, help="text to learn; Python's reference without it")
    parser.add_argument("--minutes", type=float, default=1.5, help="stop training after this time")
    parser.add_argument("--steps", type=int, default=100_000, help="stop training after this many steps")
    parser.add_argument("--dim", type=int, default=128, help="channels")
    parser.add_argument("--depth", type=int, default=2, help="blocks")
    parser.add_argument("--batch", type=int, default=8, help="sequences a step")
    parser.add_argument("--length", type=int, default=256, help="bytes a sequence")
    parser.add_argument("--rate", type=float, default=6e-3, help="largest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("loss.png"), help="where the loss curve is drawn")
    parser.add_argument(
        "--activity-plot", type=Path, default=Path("activity.png"), help="where active tokens are drawn, if it chooses"
    )
    return parser.parse_args()


def main() -> int:
    options = arguments()
    torch.manual_seed(options.seed)
    text = read_text(options.file)
    cut = len(text) * 9 // 10
    train, held_out = text[:cut], text[cut:]
    if len(held_out) <= options.length:
        console.print(f"[red]the text has {len(text)} bytes, too few for sequences of {options.length}; give a longer one")
        return 2
    model = LanguageModel(options.dim, options.depth, options.mechanism)
    size = sum(p.numel() for p in model.parameters())
    console.print(f"{options.mechanism}: {size:,} parameters, {len(train):,} bytes to learn, {len(held_out):,} held out")
    start = time.monotonic()
    losses, rates = train_model(model, train, options)
    records = [record for op in mechanisms.names() for kernels in provenance(op).values() for record in kernels]
    schedules = ", ".join(f"{count} {source}" for source, count in Counter(r["source"] for r in records).items())
    console.print(f"{len(losses)} steps in {time.monotonic() - start:.0f} s with kernels scheduled by {schedules}")

    bigram, ours = bigram_bits(train, held_out), model_bits(model, held_out, options.length)
    draw(losses, bigram, ours, options.plot)
    prompt = bytes(held_out[:40].tolist())
    console.print("it writes:", repr(model.generate(prompt, 200).decode(errors="replace")), markup=False)
    console.print(f"loss curve: {options.plot}")
    if (active := activity(model, held_out[None, : options.length])) is not None:
        draw_activity(rates, bytes(held_out[:100].tolist()), active[:, 0, :100], options.activity_plot)
        console.print(f"active tokens: {options.activity_plot}")
    console.print(f"held out: {ours:.3f} bits per byte; a bigram model: {bigram:.3f}")
    if ours >= bigram:
        console.print("[red]not below the bigram model yet: train longer, with --minutes or --steps")
    return int(ours >= bigram)


if __name__ == "__main__":
    raise SystemExit(main())
