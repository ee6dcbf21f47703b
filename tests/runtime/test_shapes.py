"""Sizes written as text: only arithmetic is read, symbols are found from actual shapes, misfits name the argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilegen.bundle import shapes
from tilegen.errors import ArgumentError, BundleError

size = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["B", "T", "C"]),
    lambda inner: st.tuples(inner, st.sampled_from([" + ", "-", "*", "//"]), inner).map(lambda e: f"({e[0]}{e[1]}{e[2]})"),
    max_leaves=8,
)


@given(size, st.integers(1, 99), st.integers(1, 99), st.integers(1, 99))
def test_value_is_pythons(text: str, B: int, T: int, C: int) -> None:
    sizes = {"B": B, "T": T, "C": C}
    try:
        want = eval(text, {}, sizes)
    except ZeroDivisionError:
        with pytest.raises(BundleError, match="divides by zero"):
            shapes.evaluate(text, sizes)
        return
    assert shapes.evaluate(text, sizes) == want


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "B.real", "B[0]", "f(B)", "B/2", "B**9", "1.5", "True", "B if T else C", "", "B +", "lambda: 1",
     "1" * 2000, "-1", "B\0", "(" * 500 + "B" + ")" * 500],
)  # fmt: skip
def test_anything_but_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="expression of integers"):
        shapes.parse(text)


@given(st.integers(1, 64), st.integers(1, 2048), st.integers(1, 64))
def test_symbols_are_found_wherever_they_are_linear(B: int, T: int, C: int) -> None:
    arguments = [("q", ("B", "2*T + 1", 4)), ("s", ("B*T", "C - B"))]
    actual = [(B, 2 * T + 1, 4), (B * T, C)]
    assert shapes.solve(arguments, actual, {}) == {"B": B, "T": T, "C": B + C}


def test_a_quotient_or_a_product_of_unknowns_determines_nothing() -> None:
    assert shapes.determined([("T//64", "B*C", "B*B")]) == set()
    assert shapes.determined([("T//64", "B*C")], ["C"]) == {"B", "C"}
    assert shapes.determined([("B*C", "C + 2")]) == {"B", "C"}


@pytest.mark.parametrize(
    ("actual", "says"),
    [
        ([(2, 7, 4), (2, 8, 4)], r"^k has shape \[2, 8, 4\], must be \[B, T, C\] = \[2, 7, 4\] \(B=2 from q, C=4, T=7 from q\)"),
        ([(2, 7, 5), (2, 7, 5)], r"^q has shape \[2, 7, 5\], must be \[B, T, C\] = \[2, 7, 4\]"),
        ([(2, 7), (2, 7, 4)], r"^q has 2 dims \[2, 7\], must have 3"),
        ([(2, 0, 4), (2, 0, 4)], r"^q has shape \[2, 0, 4\]: T is 0, must be at least 1"),
    ],
)
def test_a_misfit_names_argument_and_remedy(actual: list[tuple[int, ...]], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        shapes.solve([("q", ("B", "T", "C")), ("k", ("B", "T", "C"))], actual, {"C": 4})


def test_an_expression_that_no_size_fits_is_a_misfit() -> None:
    with pytest.raises(ArgumentError, match=r"^w has shape \[8\]"):
        shapes.solve([("w", ("2*T + 1",))], [(8,)], {})
