"""What a SeqBoat layer and its parts cost by the share of tokens that its router activates.

python examples/activation_rate.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tilegen import nn, ops

RATES = (0.0, 0.1, 0.25, 0.5, 1.0)


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The median time of a call."""

    def once() -> float:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return 1e3 * sorted(once() for _ in range(repeats))[repeats // 2]


def trained(call: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
    """A forward and a backward pass."""
    seed = torch.randn_like(call())
    return lambda: torch.autograd.grad(call(), leaves, seed)


def activate(layer: nn.SeqBoat, x: Tensor, rate: float) -> None:
    """Set the bias of the router so that it activates that share of the tokens of `x`."""
    with torch.no_grad():
        layer.hx_proj.bias.zero_()
        seen = []
        hook = layer.hx_proj.register_forward_hook(lambda module, given, result: seen.append(result[..., :2].float()))
        layer.activity(x)
        hook.remove()
        lead = (seen[0][..., 1] - seen[0][..., 0]).flatten().sort().values
        first = round((1 - rate) * len(lead))  # of the active tokens, in the order of their lead
        layer.hx_proj.bias[1] = -lead[first - 1] if 0 < first < len(lead) else 1e3 if first == 0 else -1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--key-dim", type=int, default=64)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    device, dtype, rows = torch.device(given.device), getattr(torch, given.dtype), given.batch * given.length
    torch.manual_seed(0)
    layer = nn.SeqBoat(given.dim, window=given.window, key_dim=given.key_dim, device=device, dtype=dtype)
    x = torch.randn(given.batch, given.length, given.dim, device=device, dtype=dtype, requires_grad=True)
    q, k = (torch.randn(1, rows, 1, given.key_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    v = torch.randn(1, rows, 1, layer.value_dim, device=device, dtype=dtype, requires_grad=True)
    weight, flat = layer.mx_proj.weight, torch.randn(rows, given.dim, device=device, dtype=dtype, requires_grad=True)
    print(f"B{given.batch} T{given.length} D{given.dim}, {given.dtype}, forward + backward in ms")
    print("active   compact+extract   projection   local attention   layer")
    for rate in RATES:
        active = torch.zeros(given.batch, given.length, dtype=torch.bool, device=device)
        active[:, torch.randperm(given.length)[: round(rate * given.length)]] = True
        _, bounds = ops.compact(x, active)
        packing = trained(lambda a=active: ops.extract(*ops.compact(x, a), a), [x])
        projection = trained(lambda b=bounds: ops.packed_linear(flat, weight, cu_seqlens=b), [flat, weight])
        attention = trained(lambda b=bounds: ops.local_attention(q, k, v, window=given.window, cu_seqlens=b), [q, k, v])
        activate(layer, x, rate)
        whole = trained(lambda: layer(x), [x, *layer.parameters()])
        times = [milliseconds(call, device, given.repeats) for call in (packing, projection, attention, whole)]
        share = layer.activity(x).float().mean().item()
        print("{:5.0%} {:18.2f} {:12.2f} {:17.2f} {:10.2f}   (layer: {:.0%} active)".format(rate, *times, share))


if __name__ == "__main__":
    main()
