"""Cost ratios of symbolic sizes are those of long sequences: wide groups of a short guess would all be one."""

from __future__ import annotations

import pytest
from tvm import te, tirx

from tilegen.autodiff import gradient
from tilegen.expression import all_of, ceildiv, compute, const, floordiv, if_then_else, placeholder


@pytest.mark.parametrize("level", [1, 4, 9])
def test_groups_of_a_pair_before_are_inverted_at_any_level(level: int) -> None:
    """Block I of 64 tokens reads the two groups of 64 2^(level-1) tokens in the pair before its own."""
    T = tirx.Var("T", "int32")
    blocks, groups = ceildiv(T, 64), ceildiv(T, 64 << (level - 1))
    x = placeholder((groups, 8), "float32", "x")

    def body(I: te.Tensor, s: te.Tensor, d: te.Tensor) -> te.Tensor:  # noqa: E741
        g = floordiv(I, 1 << level) * 2 - 2 + s
        return if_then_else(all_of(g >= 0, g < groups), x[g, d], const(0, "float32"))

    y = compute((blocks, 2, 8), body, name="y")
    dy = placeholder(y.shape, "float32", "dy")
    result = gradient([y], [x], [dy])
    (dx,) = result.tensors
    assert [str(n) for n in dx.shape] == [str(n) for n in x.shape]
    assert all(note.waste == pytest.approx(1, abs=0.01) for note in result.notes)
