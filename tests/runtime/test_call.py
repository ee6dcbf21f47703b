"""Calling a loaded bundle with torch tensors and numpy arrays: results, copies where memory needs them, errors by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tilegen.errors import ArgumentError, BundleError
from tilegen.runtime import Bundle, load

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=["folder", "archive"])
def scale(request: pytest.FixtureRequest) -> Bundle:
    return load(request.getfixturevalue(request.param))


def arrays(B: int = 2, T: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((B, T, 16), np.float32), RNG.standard_normal(16, np.float32)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 5), (3, 64)])
def test_forward_of_numpy_arrays(scale: Bundle, B: int, T: int) -> None:
    x, w = arrays(B, T)
    out = scale.forward(x, w)
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, x * w + 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 5), (3, 64)])
def test_forward_of_torch_tensors(scale: Bundle, B: int, T: int) -> None:
    x, w = map(torch.from_numpy, arrays(B, T))
    out = scale.forward(x, w)
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, x * w + 1)


def test_backward_returns_gradients_of_inputs(scale: Bundle) -> None:
    x, w = arrays()
    np.testing.assert_allclose(scale.backward(w, x), x * w, rtol=1e-6)


def test_step_returns_all_outputs_in_order(scale: Bundle) -> None:
    x, w = arrays(T=1)
    state, out = scale.step(x, w)
    np.testing.assert_allclose(state, x * w, rtol=1e-6)
    np.testing.assert_allclose(out, x * w + 1, rtol=1e-6, atol=1e-6)


def test_inputs_are_not_changed_and_results_are_fresh(scale: Bundle) -> None:
    x, w = arrays()
    before = x.copy()
    first = scale.forward(x, w)
    kept = first.copy()
    second = scale.forward(x + 1, w)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(x, before)


def misaligned(x: Any, by: int) -> Any:
    """A copy of `x` that starts `by` elements after a multiple of 64 bytes."""
    if isinstance(x, torch.Tensor):
        return torch.from_numpy(misaligned(x.numpy(), by))
    room = np.empty(x.size + 64, x.dtype)
    start = (-room.ctypes.data % 64) // x.itemsize + by
    room[start : start + x.size] = x.ravel()
    return room[start : start + x.size].reshape(x.shape)


VIEWS: dict[str, Callable[[Any], Any]] = {
    "aligned": lambda x: misaligned(x, 0),
    "misaligned by 4 bytes": lambda x: misaligned(x, 1),
    "misaligned by 32 bytes": lambda x: misaligned(x, 8),
    "every other step": lambda x: x[:, ::2],
    "transposed": lambda x: x.reshape(5, 2, 16).swapaxes(0, 1),
    "broadcast": lambda x: x[:1].repeat(3, 0)[:, :1] if isinstance(x, np.ndarray) else x[:1, :1].expand(3, 4, 16),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_any_memory_layout_gives_the_same_result(scale: Bundle, view: Callable[[Any], Any], kind: str) -> None:
    x, w = arrays()
    if kind == "torch":
        x, w = torch.from_numpy(x), torch.from_numpy(w)
    x = view(x)
    np.testing.assert_allclose(scale.forward(x, w), x * w + 1, rtol=1e-6, atol=1e-6)


def test_numpy_arrays_that_numpy_does_not_export(scale: Bundle) -> None:
    x, w = arrays()
    x = misaligned(x, 0)
    x.flags.writeable = False
    np.testing.assert_allclose(scale.forward(x, w), x * w + 1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        scale.forward(np.broadcast_to(x[:1], (3, 5, 16)), w), np.stack([x[0] * w + 1] * 3), rtol=1e-6, atol=1e-6
    )


def test_tensors_that_require_gradients_are_read(scale: Bundle) -> None:
    x, w = map(torch.from_numpy, arrays())
    out = scale.forward(x.requires_grad_(), torch.nn.Parameter(w))
    assert not out.requires_grad
    torch.testing.assert_close(out, (x * w + 1).detach())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(built: Callable[[str], Path], dtype: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bundle = load(built(dtype))
    x, w = map(torch.from_numpy, arrays())
    x, w = x.to(getattr(torch, dtype)), w.to(getattr(torch, dtype))
    want = x * w + 1
    torch.testing.assert_close(bundle.forward(x, w), want)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    got = bundle.forward(x.double().numpy().astype(numpy_dtype), w.double().numpy().astype(numpy_dtype))
    assert got.dtype == numpy_dtype
    torch.testing.assert_close(torch.from_numpy(got.astype(np.float64)), want.double(), rtol=1e-2, atol=1e-2)


def bad_calls() -> dict[str, tuple[Callable[[Any, Any], tuple[Any, ...]], str]]:
    return {
        "too few": (lambda x, w: (x,), r"forward got 1 arguments, must get 2: x, w"),
        "too many": (lambda x, w: (x, w, w), r"forward got 3 arguments"),
        "torch and numpy": (lambda x, w: (x, w.numpy()), r"x a torch\.Tensor, w a numpy\.ndarray; all must be"),
        "a list": (lambda x, w: ([[1.0]], w), r"x a builtins\.list"),
        "dtype": (lambda x, w: (x, w.double()), r"w has dtype float64, must be float32"),
        "integers": (lambda x, w: (x.int(), w), r"x has dtype int32, must be float32"),
        "byte order": (lambda x, w: (x.numpy().astype(">f4"), w.numpy()), r"x has dtype byte-swapped float32"),
        "dims": (lambda x, w: (x[0], w), r"x has 2 dims \[5, 16\], must have 3: \[B, T, C\]"),
        "static size": (
            lambda x, w: (x[..., :8].contiguous(), w),
            r"x has shape \[2, 5, 8\], must be \[B, T, C\] = \[2, 5, 16\]",
        ),
        "sizes": (lambda x, w: (x, w[:8]), r"w has shape \[8\], must be \[C\] = \[16\]"),
        "T = 0": (lambda x, w: (x[:, :0], w), r"x has shape .*T is 0, must be at least 1"),
        "device": (lambda x, w: (x.to("meta"), w), r"x is on meta, must be on cpu"),
        "layout": (lambda x, w: (x.to_sparse(), w), r"x has dtype torch\.sparse_coo"),
    }


@pytest.mark.parametrize(("change", "says"), bad_calls().values(), ids=bad_calls())
def test_a_wrong_argument_is_named(scale: Bundle, change: Callable[[Any, Any], tuple[Any, ...]], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        scale.forward(*change(*map(torch.from_numpy, arrays())))
    x, w = map(torch.from_numpy, arrays())
    torch.testing.assert_close(scale.forward(x, w), x * w + 1)  # and the next call is fine


def test_offsets_beyond_32_bits_are_refused(scale: Bundle) -> None:
    huge = torch.empty(1, dtype=torch.float32).expand(2**14, 2**13, 16)  # 2**31 elements in 4 bytes
    with pytest.raises(ArgumentError, match=r"^x \(input of forward\) .*must be below 2\*\*31; split the batch"):
        scale.forward(huge, torch.ones(16))


def test_raw_call_and_its_description(scale: Bundle) -> None:
    x, w = map(torch.from_numpy, arrays())
    forward = scale.function("forward")
    assert [arg.role for arg in forward.args] == ["input", "input", "workspace", "output"]
    assert forward.symbols([x, w]) == {"B": 2, "T": 5}
    shapes = {arg.name: shape for arg, shape in forward.allocations({"B": 2, "T": 5})}
    assert shapes == {"x": (2, 5, 16), "w": (16,), "product": (2, 5, 16), "out": (2, 5, 16)}
    tensors = [x.clone(), w.clone(), torch.empty_like(x), torch.full_like(x, torch.nan)]
    assert forward.call(tensors) is None
    torch.testing.assert_close(tensors[3], x * w + 1)


def test_raw_call_with_a_wrong_shape_is_refused_by_the_library(scale: Bundle) -> None:
    x, w = map(torch.from_numpy, arrays())
    with pytest.raises(ArgumentError, match="forward refused its arguments"):
        scale.forward.call([x, w, torch.empty_like(x), torch.empty(2, 4, 16)])
    with pytest.raises(ArgumentError, match="forward refused its arguments"):
        scale.forward.call([x, w])


def test_a_function_that_the_bundle_lacks_is_named(scale: Bundle) -> None:
    with pytest.raises(BundleError, match="has no function 'sideways', it has: forward, backward, step"):
        scale.function("sideways")


def test_what_a_bundle_prints(scale: Bundle) -> None:
    assert "Bundle scale float32 [C=16] for llvm" in repr(scale)
    assert "forward(x: float32[B, T, C], w: float32[C]) -> out" in repr(scale)
