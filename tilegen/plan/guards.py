"""What a guard protects is read under the guard and computed outside of it, so that shared values can be bound.

A value under a guard cannot be bound outside: what it reads may not exist.  Written out where it is used, every level of a chain of
functions multiplies what is below.  Here the reads alone stay under their guard, as values of their own (0 where it fails), and
``if_then_else(c, f(x[i]), y)`` becomes ``u = if_then_else(c, x[i], 0); select(c, f(u), y)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi
from tvm import ir, tirx

from tilegen.expression.walkers import WIDE, call_name, find, prim, rewrite, substitute

Expr = Any


def opened(expr: Expr, bind: Callable[[str, Expr], Expr], costly: Callable[[Expr], bool]) -> Expr:
    """`expr` without `if_then_else`, if a function that is `costly` to repeat stands under one; its reads given to `bind`."""
    guards = find(expr, lambda e: call_name(e) == "if_then_else")
    if not any(find(side, costly) for call in guards for side in call.args[1:]):
        return expr
    reads = _Reads(bind)
    return reads.bound(rewrite(expr, ir.Call, lambda call: reads.selected(call) if call_name(call) == "if_then_else" else call))


class _Reads:
    """The reads under guards: a variable for each while the guards around it are found, inner ones first."""

    def __init__(self, bind: Callable[[str, Expr], Expr]):
        self.bind = bind
        self.guard: dict[Any, Expr] = {}
        self.read: dict[Any, Expr] = {}
        self.known: list[tuple[Expr, Any]] = []

    def selected(self, call: Any) -> Expr:
        """A guarded value as a select between values of which every read has the guard of its side."""
        condition, *sides = call.args
        return tirx.Select(condition, *[self._under(taken, side) for taken, side in zip((condition, tirx.Not(condition)), sides, strict=True)])

    def _under(self, taken: Expr, expr: Expr) -> Expr:
        """`expr` with `taken` around whatever it reads."""
        for variable in self._inside(expr):
            self.read[variable] = self._renamed(taken, self.read[variable])
            self.guard[variable] = tirx.And(taken, self._named(taken, self.guard[variable]))
        return self._named(taken, expr)

    def _inside(self, expr: Expr) -> list[Any]:
        """The variables of an expression, and those in their guards and reads."""
        found: list[Any] = []
        stack = [expr]
        while stack:
            for variable in find(stack.pop(), lambda e: e in self.guard):
                if not any(variable.same_as(other) for other in found):
                    found.append(variable)
                    stack += [self.guard[variable], self.read[variable]]
        return found

    def _named(self, taken: Expr, expr: Expr) -> Expr:
        """`expr` with a variable for every read in it; a narrow float is read together with its widening."""

        def named(read: Expr) -> Expr:
            variable = tirx.Var("read", str(read.ty.dtype))
            self.guard[variable], self.read[variable] = taken, read
            return variable

        widened = lambda e: named(e) if str(e.ty.dtype) not in WIDE and find(e, _is_narrow_read) else e  # noqa: E731
        plain = lambda e: e if _is_narrow_read(e) else named(e)  # noqa: E731
        expr = rewrite(rewrite(expr, ir.Call, widened), prim.Cast, widened)
        for kind in {type(read) for read in find(expr, is_read)}:
            expr = rewrite(expr, kind, plain)
        return expr

    def _renamed(self, taken: Expr, read: Expr) -> Expr:
        """A read that has its variable already, with variables for the reads in its indices."""
        first = find(read, is_read)[0]
        if not any(find(index, is_read) for index in first.indices):
            return read
        made = tirx.BufferLoad(first.source, [self._named(taken, index) for index in first.indices])
        return rewrite(read, type(first), lambda load: made if load.same_as(first) else load)

    def bound(self, expr: Expr) -> Expr:
        """`expr` with every variable given its value, the same one for equal reads under equal guards."""
        done: dict[Any, Expr] = {}

        def value(variable: Any) -> Expr:
            if variable not in done:
                guard, read = resolved(self.guard[variable]), resolved(self.read[variable])
                guarded = tirx.if_then_else(guard, read, tirx.const(0, str(read.ty.dtype)))
                known = next((v for e, v in self.known if tvm_ffi.structural_equal(e, guarded)), None)
                if known is None:
                    known = self.bind("read", guarded)
                    self.known.append((guarded, known))
                done[variable] = known
            return done[variable]

        def resolved(e: Expr) -> Expr:
            return substitute(e, {variable: value(variable) for variable in find(e, lambda x: x in self.guard)})

        return resolved(expr)


def is_read(expr: Expr) -> bool:
    """Whether `expr` reads one element of a buffer."""
    return type(expr).__name__ in ("BufferLoad", "TensorLoad")


def _is_narrow_read(expr: Expr) -> bool:
    return is_read(expr) and str(expr.ty.dtype) in WIDE
