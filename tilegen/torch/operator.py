"""The `torch.library` operators of a mechanism.

``tilegen::<name>(Tensor[] inputs, str config) -> Tensor[]`` gives the outputs followed by what the backward needs;
``tilegen::<name>_backward(Tensor[] tensors, str instance) -> Tensor[]`` takes what was kept and the gradients of the outputs.
Both have a kernel for the CPU and for CUDA, one for fake tensors, and one for autograd, so torch.compile and torch.export see
two opaque operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from tilegen.errors import ArgumentError, AutodiffError
from tilegen.mechanisms import Instance, Mechanism
from tilegen.torch.loaded import Loaded, loaded, loaded_by_key
from tilegen.torch.precision import tf32_allowed
from tilegen.torch.signature import NAMES, Signature, decode, encode

LIBRARY = torch.library.Library("tilegen", "DEF")
DISPATCH = ("CPU", "CUDA")
"""Dispatch keys of the devices that libraries are built for."""

TAGS = (torch.Tag.pt2_compliant_tag,)

_PLAIN = {torch.Tensor, torch.nn.Parameter}

_operators: dict[str, Operator] = {}


class Operator:
    """A mechanism that can be called with torch tensors.

    Makes the torch operators of `mechanism`; `operator` does so once.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self.mechanism, name = mechanism, mechanism.name
        self._signatures: dict[Any, Signature] = {}
        self._loaded: dict[tuple[Any, ...], Loaded] = {}
        LIBRARY.define(f"{name}(Tensor[] inputs, str config) -> Tensor[]", tags=TAGS)
        LIBRARY.define(f"{name}_backward(Tensor[] tensors, str instance) -> Tensor[]", tags=TAGS)
        self.forward = getattr(torch.ops.tilegen, name).default
        self.backward = getattr(torch.ops.tilegen, f"{name}_backward").default
        for device in DISPATCH:
            LIBRARY.impl(name, self._run_forward, device)
            LIBRARY.impl(f"{name}_backward", _run_backward, device)
        LIBRARY.impl(name, self._differentiable_forward, "Autograd")
        torch.library.register_fake(f"tilegen::{name}", self._fake_forward, lib=LIBRARY)
        LIBRARY.impl(f"{name}_backward", self._differentiable_backward, "Autograd")
        torch.library.register_fake(f"tilegen::{name}_backward", _fake_backward, lib=LIBRARY)

    def __call__(self, config: Any, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Check the arguments, run the operator under autograd, and give the outputs in the order of their specs.

        Under autocast, arguments of the caller's dtype are cast to autocast's dtype, and states to the dtype they are kept in.

        Raises
        ------
        ArgumentError
            When an argument does not fit its spec.
        """
        if torch.compiler.is_compiling():
            return self._traced(encode(config), tensors)
        signature = self.signature(config)
        inputs = _autocast(signature.dtypes, signature.gather(tensors))
        signature.check(inputs)
        # Going round torch's dispatcher, where it would lead here anyway, saves more than all checks cost.
        forward = self._differentiable_forward if _is_plain(inputs) else self.forward
        return tuple(forward(inputs, signature.text)[: len(signature.outputs)])

    def _traced(self, config: str, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The call in terms that torch.compile can follow; the fake kernel checks the arguments."""
        names, dtypes, outputs = _constants(self.mechanism.name, config)
        return tuple(self.forward(_autocast(dtypes, [tensors[name] for name in names]), config)[:outputs])

    def signature(self, config: Any) -> Signature:
        """The signature of a config, given as the dataclass or as its JSON text."""
        found = self._signatures.get(config)
        if found is None:
            given = decode(self.mechanism, config) if isinstance(config, str) else config
            found = self._signatures[config] = Signature(self.mechanism, given)
        return found

    def loaded(self, config: str, inputs: list[torch.Tensor]) -> Loaded:
        """The library that serves `inputs`."""
        signature = self.signature(config)
        # int() makes a constant of a symbolic size while torch.compile traces: another C is another library.
        static = [int(inputs[i].shape[d]) for i, d in signature.static_at]
        first = inputs[signature.io_at]
        dtype, device = first.dtype, first.device
        tf32 = dtype is torch.float32 and device.type == "cuda" and tf32_allowed()
        found = self._loaded.get((config, dtype, device, tf32, *static))
        if found is None:
            signature.check(inputs)  # whoever comes through torch.ops has not been checked
            sizes = dict(zip(self.mechanism.static, static, strict=True))
            found = loaded(Instance(self.mechanism, signature.config, sizes, NAMES[dtype]), device, tf32=tf32)
            self._loaded[config, dtype, device, tf32, *static] = found
        return found

    def _run_forward(self, inputs: list[torch.Tensor], config: str) -> list[torch.Tensor]:
        return self.loaded(config, inputs).forward.run(inputs)

    def _fake_forward(self, inputs: list[torch.Tensor], config: str) -> list[torch.Tensor]:
        self.signature(config).check(inputs)
        return self.loaded(config, inputs).forward.fake(inputs)

    def _differentiable_forward(self, inputs: list[torch.Tensor], config: str) -> list[torch.Tensor]:
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            return list(_Forward.apply(self, config, *inputs))
        return self._below(inputs, config)

    def _below(self, inputs: list[torch.Tensor], config: str) -> list[torch.Tensor]:
        """The forward without autograd."""
        if _is_plain(inputs):
            return self._run_forward(inputs, config)
        with torch._C._AutoDispatchBelowAutograd():
            results: list[torch.Tensor] = self.forward(inputs, config)
        return results

    def _differentiable_backward(self, tensors: list[torch.Tensor], instance: str) -> list[torch.Tensor]:
        if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
            return list(_Backward.apply(self, instance, *tensors))
        with torch._C._AutoDispatchBelowAutograd():
            results: list[torch.Tensor] = self.backward(tensors, instance)
        return results


def _is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a call of torch's dispatcher with these tensors would only come to the device's kernel, by way of autograd.

    So it is without modes (fake tensors, tracing, profiling), transforms (vmap, forward derivatives) and subclasses of tensors.
    """
    return (
        all(type(x) in _PLAIN for x in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and not torch._C._autograd._profiler_enabled()
    )


def _constants(name: str, config: str) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    """Names and dtypes of the inputs, and the number of outputs."""
    signature = _operators[name].signature(config)
    return signature.names, signature.dtypes, len(signature.outputs)


# What torch.compiler.assume_constant_result sets; calling that would import the whole of torch._dynamo with this package.
_constants._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _run_backward(tensors: list[torch.Tensor], instance: str) -> list[torch.Tensor]:
    return loaded_by_key(instance, tensors[0].device).backward.run(tensors)


def _fake_backward(tensors: list[torch.Tensor], instance: str) -> list[torch.Tensor]:
    return loaded_by_key(instance, tensors[0].device).backward.fake(tensors)


class _Forward(torch.autograd.Function):
    """The forward operator with its gradient.  (torch.library.register_autograd does the same in twice the time.)"""

    @staticmethod
    def forward(ctx: Any, operator: Operator, config: str, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = operator._below(list(inputs), config)
        library = operator.loaded(config, list(inputs))
        both = (*inputs, *results)
        ctx.save_for_backward(*[both[i] for i in library.kept])
        ctx.mark_non_differentiable(*[results[i] for i in library.constant])
        # Zeros are made for the gradients that the backward reads, not for every saved tensor.
        ctx.set_materialize_grads(False)
        ctx.operator, ctx.library, ctx.inputs = operator, library, len(inputs)
        ctx.outputs = [(results[i].shape, results[i].dtype, results[i].device) for i in library.grads]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        library, kept = ctx.library, ctx.saved_tensors
        given = [_or_zeros(grads[i], *output) for i, output in zip(library.grads, ctx.outputs, strict=True)]
        tensors = [*kept, *given]
        plain = not torch.is_grad_enabled() and _is_plain(tensors)
        if plain:
            # What is allowed may have changed since the forward; both libraries of an instance keep the same.
            results = loaded_by_key(library.key, tensors[0].device).backward.run(tensors)
        else:
            results = ctx.operator.backward(tensors, library.key)
        found: list[torch.Tensor | None] = [None] * ctx.inputs
        for i, grad in zip(library.grad_inputs, results, strict=True):
            found[i] = grad
        return None, None, *found


class _Backward(torch.autograd.Function):
    """The backward operator, where differentiation ends."""

    @staticmethod
    def forward(ctx: Any, operator: Operator, instance: str, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.operator = operator
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(operator.backward(list(tensors), instance))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        name = ctx.operator.mechanism.name
        raise AutodiffError(
            f"{name} was differentiated twice; it has first derivatives only: call backward without create_graph=True, or use "
            f"the plain PyTorch form tilegen.ops.{name}.reference where second derivatives are needed"
        )


def _or_zeros(grad: torch.Tensor | None, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad


def _autocast(dtypes: Sequence[str], inputs: list[Any]) -> list[Any]:
    """The arguments in the dtypes that autocast asks for; float64 is left alone, as torch does."""
    first = inputs[dtypes.index("io")]
    if not isinstance(first, torch.Tensor) or not torch.is_autocast_enabled(first.device.type):
        return inputs
    wanted = {"io": torch.get_autocast_dtype(first.device.type), "acc": torch.float32}
    return [
        x.to(wanted[dtype])
        if dtype in wanted and isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype is not torch.float64
        else x
        for dtype, x in zip(dtypes, inputs, strict=True)
    ]


def operator(mechanism: Mechanism) -> Operator:
    """The torch operators of a mechanism, made on first use."""
    known = _operators.get(mechanism.name)
    if known is None:
        known = _operators[mechanism.name] = Operator(mechanism)
    if known.mechanism is not mechanism:
        raise ArgumentError(f"an operator called '{mechanism.name}' exists already; choose another name")
    return known
