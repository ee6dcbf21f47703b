"""A mechanism of one's own: a gated linear recurrence, from its expression to a checked, tuned, compiled operator.

h_t = a_t h_{t-1} + (1 - a_t) x_t with a_t = sigmoid(g_t), and y_t = silu(o_t) h_t.
"""

import torch

import tilegen
from tilegen.tune import tune


@tilegen.mechanism(inputs={"x": "B T C", "g": "B T C", "o": "B T C"}, outputs={"y": "B T C"})
def gated_linear_recurrence(config, dims, x, g, o):
    from tilegen.expression import compute, scan, sigmoid, silu

    wide = lambda tensor, b, t, c: tensor[b, t, c].astype(dims.acc)  # noqa: E731
    a = compute(x.shape, lambda b, t, c: sigmoid(wide(g, b, t, c)), name="a")
    u = compute(x.shape, lambda b, t, c: (1 - a[b, t, c]) * wide(x, b, t, c), name="u")
    h = scan(u, axis=1, decay=a, name="h")
    return (compute(x.shape, lambda b, t, c: (silu(wide(o, b, t, c)) * h[b, t, c]).astype(dims.io), name="y"),)


if __name__ == "__main__":
    torch.manual_seed(0)
    exact = [torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    print("gradcheck:", torch.autograd.gradcheck(gated_linear_recurrence, exact))
    instance = tilegen.Instance(gated_linear_recurrence.mechanism, gated_linear_recurrence.mechanism.config(), {"C": 256}, "float32")
    tune([instance], trials=16, shapes={"B": 2, "T": 512})
    x, g, o = (torch.randn(2, 512, 256, requires_grad=True) for _ in range(3))
    gated_linear_recurrence(x, g, o).square().mean().backward()
    print("loss gradient of x:", x.grad.norm().item())
