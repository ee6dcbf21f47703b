"""Tell from a long run of bytes where it comes from: a classifier of CHELA layers beside the same network with softmax attention.

The texts are the sources of Python's standard library, which every machine has: a class is a package (`email`, `tkinter`, ...),
an input a run of `--length` bytes somewhere in one of its files, and a fifth of the files of each class is held out as a whole.
Any other folder whose subfolders are the classes will do.  Each network learns for the same number of steps in a process of its own.
Printed are accuracy on the held-out files, seconds a step and peak memory of training, beside two answers that need no network:
the largest class, and naive Bayes over single bytes.

    python examples/long_range.py
    python examples/long_range.py --length 4096 --taps 512 --batch 4
    python examples/long_range.py --folder corpus --pattern '*.txt' --device cuda --networks chela
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import statistics
import sysconfig
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# Torch's threads and those of the compiled kernels take turns on the same cores: left to themselves torch's idle threads spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from tilegen import nn as layers

BYTES = 256
HELD_OUT = 5
"""One file in so many is held out."""


class Attention(nn.Module):
    """Softmax attention of PyTorch, pre-normalised and with a residual, as `Chela` is."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, C] -> [B, T, C]."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Classifier(nn.Module):
    """Bytes in, scores of the classes out: mixing and gated feed-forward layers in turns, and the mean over all positions."""

    def __init__(self, network: str, classes: int, options: argparse.Namespace) -> None:
        super().__init__()
        dim, heads = options.dim, options.heads
        mixers = {
            "chela": lambda: layers.Chela(dim, heads=heads, short_taps=3, long_taps=options.taps, causal=False),
            "attention": lambda: Attention(dim, heads),
        }
        self.embed = nn.Embedding(BYTES, dim)
        self.mixers = nn.ModuleList(mixers[network]() for _ in range(options.depth))
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(options.depth))
        self.ups = nn.ModuleList(nn.Linear(dim, 4 * dim, bias=False) for _ in range(options.depth))
        self.downs = nn.ModuleList(nn.Linear(2 * dim, dim, bias=False) for _ in range(options.depth))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, classes)
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, text: Tensor) -> Tensor:
        """`text` [B, T] int64 -> scores [B, classes]."""
        x = self.embed(text)
        x = x + 0.1 * positions(x.shape[1], x.shape[2], x.device)
        for mix, norm, up, down in zip(self.mixers, self.norms, self.ups, self.downs, strict=True):
            x = mix(x)
            gate, value = up(norm(x)).chunk(2, -1)
            x = x + down(F.silu(gate) * value)
        return self.head(self.norm(x).mean(1))


def positions(time: int, dim: int, device: torch.device) -> Tensor:
    """Sines and cosines of positions at wavelengths from 2 pi to 20,000 pi [T, C]; without them attention sees no order."""
    rate = 1e-4 ** (torch.arange(0, dim, 2, device=device) / dim)
    angle = torch.arange(time, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :dim]


@dataclass
class Texts:
    """Files of one part: bytes [n] each, at least as long as a run, and their classes."""

    files: list[Tensor]
    labels: list[int]

    def draw(self, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Runs [count, length] at random places, files by their size, and their classes [count]."""
        sizes = torch.tensor([float(len(file)) for file in self.files])
        chosen = torch.multinomial(sizes, count, replacement=True, generator=generator).tolist()
        rows = []
        for k in chosen:
            start = int(torch.randint(len(self.files[k]) - length + 1, (1,), generator=generator))
            rows.append(self.files[k][start : start + length])
        return torch.stack(rows).long(), torch.tensor([self.labels[k] for k in chosen])

    def runs(self, length: int) -> tuple[Tensor, Tensor]:
        """All runs that do not overlap [n, length], and their classes [n]."""
        cut = [file[: len(file) // length * length].view(-1, length) for file in self.files]
        labels = [torch.full((len(rows),), label) for rows, label in zip(cut, self.labels, strict=True)]
        return torch.cat(cut).long(), torch.cat(labels)


def read(options: argparse.Namespace) -> tuple[list[str], Texts, Texts]:
    """Names of the classes, texts to learn and texts held out: of the folders with most text that have files enough."""
    found: dict[str, list[bytes]] = {}
    for folder in sorted(path for path in options.folder.iterdir() if path.is_dir()):
        if not re.fullmatch(options.skip, folder.name):
            contents = [path.read_bytes() for path in sorted(folder.rglob(options.pattern))]
            # What is shorter than a run is no task for this length.
            contents = [content for content in contents if len(content) >= options.length]
            if len(contents) >= HELD_OUT:
                found[folder.name] = contents
    names = sorted(sorted(found, key=lambda name: -sum(map(len, found[name])))[: options.classes])
    if len(names) < 2:
        raise SystemExit(
            f"{options.folder} has {len(names)} subfolders with {HELD_OUT} files of {options.length} bytes; 2 are needed"
        )
    learn, held_out = Texts([], []), Texts([], [])
    for label, name in enumerate(names):
        for number, content in enumerate(found[name]):
            part = held_out if number % HELD_OUT == 0 else learn
            part.files.append(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            part.labels.append(label)
    return names, learn, held_out


def naive_bayes(learn: Texts, runs: Tensor, classes: int) -> Tensor:
    """The class of each run by its bytes alone, in no order, each class as likely as its share of the text."""
    counts = torch.ones(classes, BYTES)
    for file, label in zip(learn.files, learn.labels, strict=True):
        counts[label] += torch.bincount(file.long(), minlength=BYTES)
    total = counts.sum(1, keepdim=True)
    seen = torch.zeros(len(runs), BYTES).scatter_add_(1, runs, torch.ones(runs.shape))
    return (seen @ (counts / total).log().t() + total.log().t()).argmax(1)


@dataclass
class Result:
    """What one network did; memory is what training took above what was there before, None where it cannot be told."""

    parameters: int
    accuracy: float
    seconds: float
    memory: float | None


def train(network: str, options: argparse.Namespace) -> Result:
    """Train one network and judge it on the held-out files."""
    torch.manual_seed(options.seed)
    device, generator = torch.device(options.device), torch.Generator().manual_seed(options.seed)
    names, learn, held_out = read(options)
    model = Classifier(network, len(names), options).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.05)
    # One short run compiles the kernels for every length.
    F.cross_entropy(
        model(torch.zeros(1, 8, dtype=torch.int64, device=device)), torch.zeros(1, dtype=torch.int64, device=device)
    ).backward()
    memory, seconds = Memory(device), []
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = options.rate * min(1.0, (step + 1) / 20, 2.5 * (1 - step / options.steps) + 0.02)
        text, label = (x.to(device) for x in learn.draw(options.batch, options.length, generator))
        start = time.perf_counter()
        optimiser.zero_grad()
        loss = F.cross_entropy(model(text), label)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        value = loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
        if step % 50 == 49:
            print(f"{network}: step {step + 1}, loss {value:.3f}", flush=True)
    taken = memory.taken()
    runs, labels = held_out.runs(options.length)
    with torch.no_grad():
        guesses = torch.cat([model(rows.to(device)).argmax(1).cpu() for rows in runs.split(options.batch)])
    size = sum(p.numel() for p in model.parameters())
    return Result(size, (guesses == labels).double().mean().item(), statistics.median(seconds), taken)


class Memory:
    """Peak memory from now on, above what is taken now: the allocator's on a GPU, the process's on Linux."""

    STATUS = Path("/proc/self/status")

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        elif self.STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what there is now: man 5 proc
            self.before = self._kilobytes("VmRSS")

    def taken(self) -> float | None:
        """Megabytes."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.before) / 1e6
        return (self._kilobytes("VmHWM") - self.before) / 1e3 if self.STATUS.exists() else None

    def _kilobytes(self, name: str) -> float:
        found = re.search(rf"{name}:\s*(\d+) kB", self.STATUS.read_text())
        return float(found[1]) if found else 0.0


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=("chela", "attention"), default=["chela", "attention"])
    parser.add_argument("--folder", type=Path, default=Path(sysconfig.get_path("stdlib")), help="its subfolders are the classes")
    parser.add_argument("--pattern", default="*.py", help="which files are read")
    parser.add_argument(
        "--skip", default="test|site-packages|dist-packages|__pycache__", help="folders that are no classes, a regular expression"
    )
    parser.add_argument("--classes", type=int, default=8, help="at most so many, those with most text")
    parser.add_argument("--length", type=int, default=1024, help="bytes a run")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="runs a step")
    parser.add_argument("--dim", type=int, default=64, help="channels")
    parser.add_argument("--depth", type=int, default=2, help="layers of each kind")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--taps", type=int, default=128, help="how far a long kernel reaches to each side")
    parser.add_argument("--rate", type=float, default=6e-3, help="largest learning rate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> dict[str, Result]:
    """Train and judge the networks; the results are printed and returned by network."""
    options, console = arguments(given), Console(highlight=False)
    names, learn, held_out = read(options)
    runs, labels = held_out.runs(options.length)
    size = sum(map(len, learn.files))
    console.print(
        f"{len(names)} classes: {', '.join(names)}; {size:,} bytes to learn, {len(runs)} runs of {options.length} held out"
    )
    results = {}
    for network in options.networks:
        # A process for each, so that no peak of memory is another's; started afresh, since threads do not survive a fork.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            results[network] = pool.submit(train, network, options).result()
    table = Table("", "parameters", "accuracy", "ms a step", "peak MB", box=None)
    for network, found in results.items():
        peak = "-" if found.memory is None else f"{found.memory:.0f}"
        table.add_row(network, f"{found.parameters:,}", f"{found.accuracy:.1%}", f"{1e3 * found.seconds:.0f}", peak)
    bayes = naive_bayes(learn, runs, len(names))
    table.add_row("naive Bayes", "", f"{(bayes == labels).double().mean():.1%}", "", "")
    table.add_row("largest class", "", f"{labels.bincount().max() / len(labels):.1%}", "", "")
    console.print(table)
    return results


if __name__ == "__main__":
    main()
