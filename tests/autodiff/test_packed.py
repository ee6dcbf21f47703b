"""Packed sequences: forward and adjoint of a packed graph equal those of every sequence alone."""

from __future__ import annotations

import pytest
import torch
from tvm import tirx

from tests.autodiff.executor import TORCH, build, prim_func
from tilegen.autodiff import gradient, unproved_reads
from tilegen.errors import ExpressionError
from tilegen.expression import (
    cast,
    ceildiv,
    compute,
    exp,
    floordiv,
    floormod,
    if_then_else,
    maximum,
    minimum,
    placeholder,
    reduce_axis,
    reduce_max,
    reduce_sum,
    scan,
    stop_gradient,
)
from tilegen.expression.pack import pack

B, T, S = (tirx.Var(name, "int32") for name in "BTS")
LENGTHS = [[5, 1, 8, 3], [7], [1, 1, 2], [4, 8, 4]]


def tensors(**shapes):
    return [placeholder(shape, "float64", name) for name, shape in shapes.items()]


def decayed_sum():
    x, a, s = tensors(x=(B, T, 3), a=(B, T, 1), s=(B, 3))
    y = scan(x, axis=1, decay=a, initial=s, name="y")
    end = compute((B, 3), lambda b, c: y[b, T - 1, c], "end")
    return [x, a, s], [y, end]


def decayed_sum_alone(x, a, s):
    rows = []
    for t in range(x.shape[1]):
        s = a[:, t] * s + x[:, t]
        rows.append(s)
    return torch.stack(rows, 1), s


def log_sum_from_the_end():
    x, s = tensors(x=(B, T, 3), s=(B, 3))
    return [x, s], [scan(x, axis=1, kind="logsumexp", initial=s, reverse=True, name="z")]


def log_sum_from_the_end_alone(x, s):
    rows = []
    for t in reversed(range(x.shape[1])):
        s = torch.logaddexp(s, x[:, t])
        rows.append(s)
    return (torch.stack(rows[::-1], 1),)


def state_before():
    x, a, s = tensors(x=(B, T, 3), a=(B, T, 3), s=(B, 3))
    return [x, a, s], [scan(x, axis=1, decay=a, initial=s, exclusive=True, name="y")]


def state_before_alone(x, a, s):
    rows = []
    for t in range(x.shape[1]):
        rows.append(s)
        s = a[:, t] * s + x[:, t]
    return (torch.stack(rows, 1),)


def window():
    """A short convolution with weights for all sequences, and a look at the next position."""
    x, w, r = *tensors(x=(B, T, 3), w=(4, 3)), reduce_axis(4, "r")
    y = compute((B, T, 3), lambda b, t, c: reduce_sum(if_then_else(t - r >= 0, x[b, t - r, c] * w[r, c], 0.0), r), "y")
    z = compute((B, T, 3), lambda b, t, c: y[b, t, c] * if_then_else(t + 1 < T, x[b, t + 1, c], 1.0), "z")
    return [x, w], [z]


def window_alone(x, w):
    padded = torch.nn.functional.pad(x, (0, 0, 3, 0))
    y = sum(padded[:, 3 - r : padded.shape[1] - r] * w[r] for r in range(4))
    return (y * torch.cat([x[:, 1:], torch.ones_like(x[:, :1])], 1),)


def mean_of_each_sequence():
    """Sums over all positions of a sequence, used by all of them."""
    x, j, i = *tensors(x=(B, T, 3)), reduce_axis(T, "j"), reduce_axis(T, "i")
    n = compute((B, 3), lambda b, c: reduce_sum(exp(x[b, j.var, c]), j), "n")
    m = compute((B, 3), lambda b, c: reduce_sum(exp(x[b, i.var, c]) * x[b, i.var, c], i), "m")
    return [x], [compute((B, T, 3), lambda b, t, c: x[b, t, c] * m[b, c] / n[b, c], "y")]


def mean_of_each_sequence_alone(x):
    return (x * (x.softmax(1) * x).sum(1, keepdim=True),)


def shifted_softmax():
    """As above with the maximum of each sequence taken off, which is a constant for differentiation."""
    x, i, j = *tensors(x=(B, T, 3)), reduce_axis(T, "i"), reduce_axis(T, "j")
    top = stop_gradient(compute((B, 3), lambda b, c: reduce_max(x[b, i.var, c], i), "top"))
    p = compute((B, T, 3), lambda b, t, c: exp(x[b, t, c] - top[b, c]), "p")
    n = compute((B, 3), lambda b, c: reduce_sum(p[b, j.var, c], j), "n")
    return [x], [compute((B, T, 3), lambda b, t, c: p[b, t, c] / n[b, c], "y")]


def shifted_softmax_alone(x):
    return (x.softmax(1),)


def chunked_attention():
    """Causal linear attention in chunks of 4, with a state in and out."""
    C, D, E = 4, 3, 5
    q, k, v, h = tensors(q=(B, T, D), k=(B, T, D), v=(B, T, E), h=(B, D, E))
    nc = ceildiv(T, C)

    def chunks(x, name):
        row = lambda b, c, i, d: if_then_else(c * C + i < T, x[b, c * C + i, d], 0.0)
        return compute((B, nc, C, x.shape[2]), row, name)

    Q, K, V = chunks(q, "Q"), chunks(k, "K"), chunks(v, "V")
    d, j, t, d2 = reduce_axis(D, "d"), reduce_axis(C, "j"), reduce_axis(C, "t"), reduce_axis(D, "d")
    A = compute((B, nc, C, C), lambda b, c, i, j: reduce_sum(Q[b, c, i, d] * K[b, c, j, d], d), "A")
    P = compute((B, nc, C, C), lambda b, c, i, j: if_then_else(j <= i, A[b, c, i, j], 0.0), "P")
    near = compute((B, nc, C, E), lambda b, c, i, e: reduce_sum(P[b, c, i, j] * V[b, c, j, e], j), "near")
    KV = compute((B, nc, D, E), lambda b, c, d, e: reduce_sum(K[b, c, t, d] * V[b, c, t, e], t), "KV")
    H = scan(KV, axis=1, initial=h, exclusive=True, name="H")
    far = compute((B, nc, C, E), lambda b, c, i, e: reduce_sum(Q[b, c, i, d2] * H[b, c, d2, e], d2), "far")

    def row(b, t, e):
        c, i = floordiv(t, C), floormod(t, C)
        return near[b, c, i, e] + far[b, c, i, e]

    O = compute((B, T, E), row, "O")
    end = compute((B, D, E), lambda b, d, e: H[b, nc - 1, d, e] + KV[b, nc - 1, d, e], "end")
    return [q, k, v, h], [O, end]


def chunked_attention_alone(q, k, v, h):
    return (q @ k.mT).tril() @ v + q @ h, h + k.mT @ v


def steady_decay():
    """The decay of all sequences is one vector of weights."""
    x, w = tensors(x=(B, T, 3), w=(3,))
    a = compute((1, 1, 3), lambda b, t, c: w[c] * 0.5, "a")
    return [x, w], [scan(x, axis=1, decay=a, name="y")]


def steady_decay_alone(x, w):
    return (decayed_sum_alone(x, (w * 0.5).expand(x.shape), torch.zeros_like(x[:, 0]))[0],)


def shared_decay_with_states():
    """One decay for all rows of a batch, whose last chunk is read for the final state."""
    C, D = 4, 3
    x, w, h = tensors(x=(B, T, D), w=(D,), h=(B, D))
    nc, i = ceildiv(T, C), reduce_axis(C, "i")
    length = lambda c: minimum(T - c * C, C)
    a = compute((1, nc, D), lambda b, c, d: exp(w[d] * cast(length(c), "float64") * -0.1), "a")
    X = compute((B, nc, C, D), lambda b, c, i, d: if_then_else(c * C + i < T, x[b, c * C + i, d], 0.0), "X")
    added = compute((B, nc, D), lambda b, c, d: reduce_sum(X[b, c, i, d], i), "added")
    H = scan(added, axis=1, decay=a, initial=h, exclusive=True, name="H")
    y = compute((B, T, D), lambda b, t, d: x[b, t, d] * H[b, floordiv(t, C), d], "y")
    end = compute((B, D), lambda b, d: H[b, nc - 1, d] * a[0, nc - 1, d] + added[b, nc - 1, d], "end")
    return [x, w, h], [y, end]


def shared_decay_with_states_alone(x, w, h):
    before = []
    for part in x.split(4, 1):
        before += [h[:, None]] * part.shape[1]
        h = h * torch.exp(w * part.shape[1] * -0.1) + part.sum(1)
    return x * torch.cat(before, 1), h


GRAPHS = [
    (decayed_sum, decayed_sum_alone),
    (log_sum_from_the_end, log_sum_from_the_end_alone),
    (state_before, state_before_alone),
    (window, window_alone),
    (mean_of_each_sequence, mean_of_each_sequence_alone),
    (shifted_softmax, shifted_softmax_alone),
    (chunked_attention, chunked_attention_alone),
    (steady_decay, steady_decay_alone),
    (shared_decay_with_states, shared_decay_with_states_alone),
]


def tables(kind, lengths, count):
    """The tables of a kind of chunk, as a binding makes them on the device."""
    ends = torch.cumsum(-(-torch.tensor(lengths) // kind), 0)
    starts = ends - -(-torch.tensor(lengths) // kind)
    owner = torch.searchsorted(ends, torch.arange(count), right=True).clamp(max=len(lengths) - 1)
    return {"starts": starts.int(), "ends": ends.int(), "owner": owner.int()}


def is_state(tensor):
    return any(n.same_as(B) for n in tensor.shape) and not any(n.same_as(T) for n in tensor.shape)


def is_timed(tensor):
    return any(n.same_as(T) for n in tensor.shape)


@pytest.mark.parametrize(("graph", "alone"), GRAPHS, ids=lambda f: f.__name__)
def test_packed(graph, alone):
    inputs, outputs = graph()
    cotangents = [placeholder(y.shape, "float64", f"grad_{y.op.name}") for y in outputs]
    adjoint = gradient(outputs, inputs, cotangents)
    packed = pack([*outputs, *adjoint], B, T, S)
    assert unproved_reads(packed.outputs) == []
    placed = [(kind, role, t) for kind, table in packed.tables.items() for role, t in table.items()]
    arguments = [packed.inputs[x] for x in [*inputs, *cotangents]] + [t for _, _, t in placed]
    function = build({"main": prim_func(arguments, packed.outputs)})["main"]
    for lengths in LENGTHS:
        compare(function, alone, inputs, outputs, adjoint, placed, lengths)


def compare(function, alone, inputs, outputs, adjoint, placed, lengths):
    torch.manual_seed(sum(lengths))
    total, count = sum(lengths), len(lengths)
    size = {"T": total, "S": count}

    def shape(tensor):
        timed = is_timed(tensor)
        extents = [(1 if timed else count) if n.same_as(B) else total if n.same_as(T) else int(n) for n in tensor.shape]
        return extents

    draw = lambda t: torch.randn(shape(t), dtype=torch.float64)
    values, grads = [draw(x) for x in inputs], [draw(y) for y in outputs]
    chunks = {kind: sum(-(-n // kind) for n in lengths) + 2 * (kind > 1) for kind, _, _ in placed}
    given = [tables(kind, lengths, chunks[kind])[role] for kind, role, _ in placed]
    results = [torch.full(shape(t), float("nan"), dtype=TORCH["float64"]) for t in [*outputs, *inputs]]
    function(*values, *grads, *given, *results)

    def part(tensor, value, s):
        start = sum(lengths[:s])
        if is_timed(tensor):
            return value[:, start : start + lengths[s]]
        return value[s : s + 1] if is_state(tensor) else value

    leaves = [v.clone().requires_grad_() for v in values]
    wanted = [torch.zeros_like(r) for r in results[: len(outputs)]]
    loss = torch.zeros((), dtype=torch.float64)
    for s in range(count):
        ys = alone(*[part(x, leaf, s) for x, leaf in zip(inputs, leaves, strict=True)])
        for y, got, g, whole in zip(outputs, ys, grads, wanted, strict=True):
            part(y, whole, s).copy_(got.detach())
            loss = loss + (got * part(y, g, s)).sum()
    wanted += torch.autograd.grad(loss, leaves)
    for name, got, want in zip([t.op.name for t in [*outputs, *inputs]], results, wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-10, atol=1e-10), f"{name} at lengths {lengths} ({size})"


def test_two_positions_in_one_stage_are_refused():
    (x,) = tensors(x=(B, T, 3))
    pairs = compute((B, T, T), lambda b, i, j: maximum(x[b, i, 0], x[b, j, 0]), "pairs")
    with pytest.raises(ExpressionError, match="stage 'pairs' has 2 axes of positions, which cannot be packed"):
        pack([pairs], B, T, S)


def test_a_value_of_each_sequence_without_a_batch_axis_is_refused():
    x = placeholder((1, T, 3), "float64", "x")
    last = compute((3,), lambda c: x[0, T - 1, c] * 2.0, "last")
    with pytest.raises(
        ExpressionError, match="output 'last' would have one value for each packed sequence; give it a batch axis"
    ):
        pack([last], B, T, S)


def test_an_axis_that_mixes_time_with_something_else_is_refused():
    (x,) = tensors(x=(B, T, 3))
    flat = compute((B, T * 3), lambda b, i: x[b, floordiv(i, 3), floormod(i, 3)], "flat")
    with pytest.raises(ExpressionError, match=r"stage 'flat' has an axis of extent .*axes of positions \(T\) and of chunks"):
        pack([flat], B, T, S)
