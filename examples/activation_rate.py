"""What a SeqBoat layer and its parts cost by the share of tokens that its router activates.

python examples/activation_rate.py --device cuda --dtype bfloat16
python examples/activation_rate.py --device cuda --dtype bfloat16 --compare    # beside the same layer in torch.compile
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tilegen import nn, ops
from tilegen.ops.ema import Config, reference
from tilegen.ops.local_attention.reference import rotary

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
        layer.hx_proj.bias[1] = -lead[first - 1 : first + 1].mean() if 0 < first < len(lead) else 1e3 if first == 0 else -1e3


def in_torch(layer: nn.SeqBoat, x: Tensor, room: int) -> Tensor:
    """`layer` (causal, pre-norm, softmax, rotary) in plain PyTorch, without its kernels, as it was published.

    The EMA is a convolution by FFT.  Active rows go to a buffer with `room` rows for each sequence, a multiple of the window w, where
    blocks of w rows see themselves and the block before.
    """
    w, batch = layer.window, x.shape[0]
    parameters = [p.float() for p in (layer.ema_delta, layer.ema_alpha, layer.ema_beta, layer.ema_gamma, layer.ema_omega)]
    (filtered,) = reference.convolution(Config(), layer.norm(x), *parameters)
    e = torch.nn.functional.silu(filtered)
    u, skip = layer.hx_proj(e).split([2, layer.dim], -1)
    confidence = torch.softmax(u.float() / layer.log_tau.exp().float(), -1)[..., 1]
    active = u[..., 1] > u[..., 0]
    before = active.cumsum(1)
    place = torch.where(active, before - 1, room)  # one row behind the buffer for all that are not active
    rows = e.new_zeros(batch, room + 1, layer.dim).scatter(1, place.unsqueeze(-1).expand_as(e), e)[:, :room]
    times = torch.arange(x.shape[1], device=x.device).expand(batch, -1)
    positions = times.new_zeros(batch, room + 1).scatter(1, place, times)[:, :room]
    z, r, v = torch.nn.functional.silu(layer.mx_proj(rows)).split([layer.key_dim, layer.value_dim, layer.value_dim], -1)
    q, k = (rotary((z * layer.gamma[n] + layer.beta[n]).unsqueeze(2), positions).squeeze(2) for n in range(2))
    blocks = lambda t: t.unflatten(1, (-1, w))
    pairs = lambda t: torch.cat([torch.nn.functional.pad(blocks(t), (0, 0, 0, 0, 1, 0))[:, :-1], blocks(t)], 2)
    i = torch.arange(room, device=x.device).view(-1, w, 1)
    j = i[:, :1] - w + torch.arange(2 * w, device=x.device)
    near = (j <= i) & (i - j <= w) & (j >= 0)
    logits = (blocks(q) @ pairs(k).mT * layer.key_dim**-0.5).masked_fill(~near, float("-inf"))
    found = (torch.softmax(logits.float(), -1).to(v.dtype) @ pairs(v)).flatten(1, 2)
    g = torch.nn.functional.pad(layer.h_proj(found * r), (0, 0, 0, 1))
    added = confidence.to(g.dtype).unsqueeze(-1) * g.gather(1, place.unsqueeze(-1).expand_as(e))
    return torch.nn.functional.silu(skip + added + x)


def compiled(layer: nn.SeqBoat, x: Tensor) -> Callable[[], Tensor]:
    """`in_torch` under torch.compile, with the room that the sequence with the most active tokens needs."""
    most = int(layer.activity(x).sum(1).max())
    room = max(1, -(-most // layer.window)) * layer.window
    function = torch.compile(in_torch, dynamic=False)
    return lambda: function(layer, x, room)


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
    parser.add_argument("--compare", action="store_true", help="time the same layer in torch.compile too")
    given = parser.parse_args()
    device, dtype, rows = torch.device(given.device), getattr(torch, given.dtype), given.batch * given.length
    torch.manual_seed(0)
    layer = nn.SeqBoat(given.dim, window=given.window, key_dim=given.key_dim, device=device, dtype=dtype)
    x = torch.randn(given.batch, given.length, given.dim, device=device, dtype=dtype, requires_grad=True)
    q, k = (torch.randn(1, rows, 1, given.key_dim, device=device, dtype=dtype, requires_grad=True) for _ in range(2))
    v = torch.randn(1, rows, 1, layer.value_dim, device=device, dtype=dtype, requires_grad=True)
    weight, flat = layer.mx_proj.weight, torch.randn(rows, given.dim, device=device, dtype=dtype, requires_grad=True)
    print(f"B{given.batch} T{given.length} D{given.dim}, {given.dtype}, forward + backward in ms")
    print("active   compact+extract   projection   local attention   layer" + "   torch.compile" * given.compare)
    for rate in RATES:
        active = torch.zeros(given.batch, given.length, dtype=torch.bool, device=device)
        active[:, torch.randperm(given.length)[: round(rate * given.length)]] = True
        _, bounds = ops.compact(x, active)
        packing = trained(lambda a=active: ops.extract(*ops.compact(x, a), a), [x])
        projection = trained(lambda b=bounds: ops.packed_linear(flat, weight, cu_seqlens=b), [flat, weight])
        attention = trained(lambda b=bounds: ops.local_attention(q, k, v, window=given.window, cu_seqlens=b), [q, k, v])
        activate(layer, x, rate)
        whole = trained(lambda: layer(x), [x, *layer.parameters()])
        calls = [packing, projection, attention, whole]
        if given.compare:
            calls.append(trained(compiled(layer, x), [x, *layer.parameters()]))
        times = [milliseconds(call, device, given.repeats) for call in calls]
        share = layer.activity(x).float().mean().item()
        line = "{:5.0%} {:18.2f} {:12.2f} {:17.2f} {:10.2f}".format(rate, *times)
        print(line + "".join(f"{t:16.2f}" for t in times[4:]) + f"   (layer: {share:.0%} active)")


if __name__ == "__main__":
    main()
