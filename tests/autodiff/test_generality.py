"""The pass knows no mechanism: no name of one in its sources, and stage names do not matter to it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tvm import te

from tests.autodiff import forwards
from tilegen import mechanisms
from tilegen.autodiff import gradient
from tilegen.expression import placeholder
from tilegen.expression.printer import graph_text
from tilegen.expression.rebuild import rebuilt, replace
from tilegen.expression.scan import scan, scan_inputs, scan_spec
from tilegen.expression.walkers import topological

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "tilegen" / "autodiff").glob("*.py")) + sorted((ROOT / "tilegen" / "expression").glob("*.py"))


def test_no_mechanism_is_named():
    words = {word for name in mechanisms.names() for word in (name, name.replace("_", " "))}
    assert words
    for path in SOURCES:
        found = [w for w in words if re.search(rf"\b{re.escape(w)}\b", path.read_text(encoding="utf-8"), re.IGNORECASE)]
        assert not found, f"{path.name} names {', '.join(found)}"


def renamed(inputs, outputs):
    """The same graph with every argument and stage called differently."""
    new = {x: placeholder(x.shape, str(x.dtype), f"zz{k}") for k, x in enumerate(inputs)}

    def change(op, sources):
        if isinstance(op, te.ComputeOp):
            same = rebuilt(op, 0, dict(zip(op.input_tensors, sources, strict=True)), sources).op
            return te._ffi_api.ComputeOp(f"yy{len(op.name)}", same.tag, same.attrs, same.axis, same.body).output(0)
        if (spec := scan_spec(op)) is not None:
            roles = dict(zip(scan_inputs(op), sources, strict=True))
            return scan(**roles, axis=spec.axis, kind=spec.kind, exclusive=spec.exclusive, name="xx")
        return None

    return list(new.values()), replace(outputs, new, change)


@pytest.mark.parametrize("make", [forwards.linear_attention, forwards.moments, forwards.far_field])
def test_renaming_every_stage_changes_nothing(make):
    def shape_of_adjoint(inputs, outputs):
        cotangents = [placeholder(y.shape, str(y.dtype), "G") for y in outputs]
        lines = graph_text(gradient(outputs, inputs, cotangents), topological(outputs)).splitlines()
        return [re.sub(r"[A-Za-z_]\w*(?=\[)|^\w+", "_", re.sub(r"(?<=scan_sum\()[^)]*?(?=axis)", "_", line)) for line in lines]

    original = make()
    assert shape_of_adjoint(*renamed(*original)) == shape_of_adjoint(*original)
