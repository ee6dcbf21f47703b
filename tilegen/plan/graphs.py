"""The forward and backward graphs of an instance, with the names its arguments have outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tvm import te, tirx

from tilegen.bundle import shapes
from tilegen.errors import ExpressionError
from tilegen.expression import placeholder
from tilegen.mechanisms import ACC, ArgSpec, Instance, is_packed

if TYPE_CHECKING:
    from tilegen.plan.packing import Packing


class Dims:
    """Sizes by their letters, as the expression of a mechanism uses them; `io` and `acc` are its dtypes."""

    def __init__(self, instance: Instance, sizes: dict[str, int] | None = None):
        self.io, self.acc = instance.dtype, ACC[instance.dtype]
        self.symbols = {}
        for name in instance.mechanism.symbolic:
            self.symbols[name] = sizes[name] if sizes else tirx.Var(name, "int32")
        self._static = instance.sizes()

    def __getattr__(self, name: str) -> Any:
        symbols, static = self.__dict__["symbols"], self.__dict__["_static"]
        if name in symbols:
            return symbols[name]
        if name in static:
            return static[name]
        raise ExpressionError(f"the expression asks for size '{name}', which is none of {', '.join([*symbols, *static])}")

    def shape(self, spec: ArgSpec) -> list[Any]:
        """The extents of an argument."""
        return [self.extent(dim) for dim in spec.shape]

    def extent(self, dim: str | int) -> Any:
        """One dim of an argument spec: static parts folded, a symbolic size as a variable."""
        if isinstance(dim, int):
            return dim
        if dim in self.symbols:
            return self.symbols[dim]
        unknown = shapes.names(dim) - set(self._static)
        if not unknown:
            return shapes.evaluate(dim, self._static)
        raise ExpressionError(f"dim {dim!r} mixes symbolic and static sizes; a symbolic size must stand alone in an argument's shape")


@dataclass
class Graph:
    """Tensors of one direction by name, in call order."""

    inputs: dict[str, te.Tensor]
    outputs: dict[str, te.Tensor]
    dims: Dims
    grads: dict[str, te.Tensor] = field(default_factory=dict)  # cotangents of the outputs
    packing: Packing | None = None  # of packed sequences: what this graph was made from


def forward_graph(instance: Instance, sizes: dict[str, int] | None = None) -> Graph:
    """The forward expression; `sizes` makes symbolic sizes static."""
    if not is_packed(instance.config):
        return dense_graph(instance, sizes)
    if sizes:
        raise ExpressionError(f"sizes are given for packed '{instance.mechanism.name}', whose sizes stay symbolic; leave them out")
    from tilegen.plan.packing import packed_forward

    return packed_forward(instance, dense_graph(instance))


def dense_graph(instance: Instance, sizes: dict[str, int] | None = None) -> Graph:
    """The forward expression over a batch of sequences of one length."""
    dims, config = Dims(instance, sizes), instance.config
    specs = instance.mechanism.inputs(config)
    inputs = {s.name: placeholder(dims.shape(s), s.concrete_dtype(instance.dtype), s.name) for s in specs}
    results = instance.mechanism.forward()(config, dims, **inputs)
    results = results if isinstance(results, (tuple, list)) else (results,)
    wanted = instance.mechanism.outputs(config)
    if len(results) != len(wanted):
        raise ExpressionError(
            f"the expression of '{instance.mechanism.name}' returns {len(results)} tensors, its outputs are {', '.join(s.name for s in wanted)}"
        )
    for spec, tensor in zip(wanted, results, strict=True):
        dtype = spec.concrete_dtype(instance.dtype)
        if str(tensor.dtype) != dtype or len(tensor.shape) != len(spec.shape):
            raise ExpressionError(
                f"output '{spec.name}' of '{instance.mechanism.name}' is {tensor.dtype} with {len(tensor.shape)} axes, "
                f"must be {dtype} with {len(spec.shape)}"
            )
    return Graph(inputs, {s.name: t for s, t in zip(wanted, results, strict=True)}, dims)


def backward_graph(instance: Instance, forward: Graph) -> Graph:
    """Gradients of all differentiable inputs, given those of the differentiable outputs."""
    if forward.packing is not None:
        from tilegen.plan.packing import packed_backward

        return packed_backward(instance, forward)
    from tilegen.autodiff import gradient
    from tilegen.plan.regroup import regrouped

    config = instance.config
    wrt = [s.name for s in instance.mechanism.inputs(config) if s.differentiable]
    of = [s.name for s in instance.mechanism.outputs(config) if s.differentiable]
    grads = {n: placeholder(list(forward.outputs[n].shape), str(forward.outputs[n].dtype), f"grad_{n}") for n in of}
    found = gradient([forward.outputs[n] for n in of], [forward.inputs[n] for n in wrt], [grads[n] for n in of])
    ready = {*forward.inputs.values(), *forward.outputs.values(), *grads.values()}
    results = regrouped(found.tensors, ready)
    return Graph(forward.inputs, {f"grad_{n}": t for n, t in zip(wrt, results, strict=True)}, forward.dims, grads)
