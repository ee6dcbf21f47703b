"""Sizes written as text: ``"T"``, ``"order + 1"``, ``"B*((T + 63)//64)"``.

A manifest states every dim of every argument this way.  The text is parsed, never executed: integers, names, ``+``, ``-``,
``*``, ``//`` and parentheses are all it may hold.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tilegen.errors import ArgumentError, BundleError

Dim = int | str
Shape = Sequence[Dim]

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}
_LONGEST = 1000  # characters; the parser recurses


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> ast.expr:
    """The syntax tree of a size.

    Raises
    ------
    BundleError
        When the text holds anything but integers, names, + - * // and parentheses.
    """
    try:
        if len(text) > _LONGEST:
            raise SyntaxError
        tree = ast.parse(text.strip(), mode="eval").body
        _check(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise BundleError(
            f"size {text[:80]!r} is not an expression of integers, names, + - * // and parentheses; the bundle's manifest is "
            "wrong, export it again"
        ) from None
    return tree


def _check(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return
        case ast.Name():
            return
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            _check(left)
            _check(right)
        case _:
            raise SyntaxError


def names(dim: Dim) -> frozenset[str]:
    """The names that a size depends on."""
    if isinstance(dim, int):
        return frozenset()
    return frozenset(node.id for node in ast.walk(parse(dim)) if isinstance(node, ast.Name))


def evaluate(dim: Dim, sizes: Mapping[str, int]) -> int:
    """The value of a size.

    Raises
    ------
    BundleError
        When it names a size that is not in `sizes`, or divides by zero.
    """
    if isinstance(dim, int):
        return dim
    try:
        return _value(parse(dim), sizes)
    except KeyError as missing:
        raise BundleError(f"size {dim!r} needs {missing}, known are {', '.join(sorted(sizes)) or 'none'}") from None
    except ZeroDivisionError:
        raise BundleError(f"size {dim!r} divides by zero with {dict(sizes)}") from None


def chosen(launches: Iterable[Mapping[str, Any]], sizes: Mapping[str, int]) -> list[Mapping[str, Any]]:
    """Those of the `launches` of a function that are made at these sizes, see `tilegen.build.launches`."""
    holds = lambda a, b, wanted: (evaluate(a, sizes) < evaluate(b, sizes)) is wanted  # noqa: E731
    return [one for one in launches if all(holds(*condition) for condition in one.get("when", ()))]


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=operation, right=right):
            return _OPERATIONS[type(operation)](_value(left, sizes), _value(right, sizes))
    raise AssertionError(ast.dump(node))  # parse lets nothing else through


def _degree(node: ast.expr, unknown: frozenset[str]) -> int:
    """The degree of a size as a polynomial of the unknown names; a quotient of unknowns counts as 2: not invertible."""
    match node:
        case ast.Name(id=name):
            return int(name in unknown)
        case ast.BinOp(left=left, op=operation, right=right):
            a, b = _degree(left, unknown), _degree(right, unknown)
            if isinstance(operation, ast.FloorDiv):
                return 2 if a or b else 0
            return a + b if isinstance(operation, ast.Mult) else max(a, b)
    return 0


def _solvable(dim: Dim, known: Iterable[str]) -> str | None:
    """The one name of `dim` that its value determines, given `known`."""
    unknown = names(dim) - frozenset(known)
    if len(unknown) != 1 or _degree(parse(str(dim)), unknown) != 1:
        return None
    return next(iter(unknown))


def determined(shapes: Iterable[Shape], static: Iterable[str] = ()) -> set[str]:
    """The names that actual shapes of this form determine, `static` included."""
    known = set(static)
    dims = [dim for shape in shapes for dim in shape]
    while found := {name for dim in dims if (name := _solvable(dim, known))}:
        known |= found
    return known


def solve(arguments: Sequence[tuple[str, Shape]], actual: Sequence[Sequence[int]], static: Mapping[str, int]) -> dict[str, int]:
    """Find every symbolic size from actual shapes, and check all dims against them.

    Parameters
    ----------
    arguments : name and symbolic shape of each argument.
    actual : the shapes that were passed, in the same order.
    static : sizes that are fixed.

    Returns
    -------
    dict
        The value of every symbolic size, `static` included.

    Raises
    ------
    ArgumentError
        When the number of dims or a dim does not fit, or a size is below 1; names the argument.
    """
    sizes, origin = dict(static), dict.fromkeys(static, "")
    for (name, shape), got in zip(arguments, actual, strict=True):
        if len(shape) != len(got):
            raise ArgumentError(
                f"{name} has {len(got)} dims {_text(got)}, must have {len(shape)}: {_text(shape)}; reshape {name} to that form"
            )
    progress = True
    while progress:
        progress = False
        for (name, shape), got in zip(arguments, actual, strict=True):
            for dim, value in zip(shape, got, strict=True):
                symbol = _solvable(dim, sizes)
                if symbol is None:
                    continue
                sizes[symbol] = _inverse(dim, symbol, value, sizes)
                origin[symbol], progress = name, True
    for (name, shape), got in zip(arguments, actual, strict=True):
        _compare(name, shape, got, sizes, origin)
    return sizes


def _inverse(dim: Dim, symbol: str, value: int, sizes: Mapping[str, int]) -> int:
    """The integer at which the linear `dim` comes closest to `value` from below; `_compare` finds out if it is not equal."""
    offset = evaluate(dim, {**sizes, symbol: 0})
    slope = evaluate(dim, {**sizes, symbol: 1}) - offset
    return (value - offset) // slope if slope else 0


def _compare(name: str, shape: Shape, got: Sequence[int], sizes: Mapping[str, int], origin: Mapping[str, str]) -> None:
    if 0 in got:
        where = shape[list(got).index(0)]
        raise ArgumentError(f"{name} has shape {_text(got)}: {where} is 0, must be at least 1; do not call the op on nothing")
    want = [evaluate(dim, sizes) for dim in shape]
    if want == list(got):
        return
    used = sorted(set().union(*(names(dim) for dim in shape)))
    given = ", ".join(f"{symbol}={sizes[symbol]}" + (f" from {origin[symbol]}" if origin[symbol] else "") for symbol in used)
    form = f"{_text(shape)} = {_text(want)}" + (f" ({given})" if given else "")
    raise ArgumentError(f"{name} has shape {_text(got)}, must be {form}; pass arguments whose sizes agree")


def _text(shape: Iterable[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"
