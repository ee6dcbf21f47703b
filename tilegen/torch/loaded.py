"""Compiled functions that take and return torch tensors, and the libraries that this process has loaded."""

from __future__ import annotations

import functools
import json
import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import torch

from tilegen.build import gpus
from tilegen.build.gpus import Card
from tilegen.bundle.manifest import LIMIT
from tilegen.errors import ArgumentError, BundleError
from tilegen.mechanisms import Instance
from tilegen.torch import precision
from tilegen.torch.signature import DTYPES
from tilegen.torch.sizes import first_uses, shapes_function

Tensors = Sequence[torch.Tensor]

ALIGNMENT = 64
"""Bytes.  Vectorised code uses aligned loads without a check; torch allocates this way, views into a tensor need not be."""

GPU_ALIGNMENT = 16
"""The same on a GPU: its widest load."""

TF32 = 80
"""The first compute capability with TF32."""

_REMEMBERED = 512
"""Sets of sizes that an entry knows to be small enough."""

_log = logging.getLogger("tilegen")
_lock = threading.Lock()
_loaded: dict[tuple[str, Card | None, bool, bool], Loaded] = {}


class Entry:
    """One function of a bundle: given tensors in, fresh tensors out.

    `given` are the arguments that the caller passes, in order; `results` are the fresh ones that it gets back.  A saved
    tensor one of whose dims is computed (the number of tiles, say) travels through torch with one dim: torch would otherwise
    ask whether that dim is 1, and specialise a traced program on the answer.

    `wider` gives the same function for tensors of any number of elements, None for a function that is that already.
    """

    def __init__(self, function: Any, given_roles: Iterable[str], wider: Callable[[], Entry] | None) -> None:
        self._wider = wider
        self._narrow: set[tuple[int, ...]] = set()  # sizes at which no tensor has 2**31 elements
        args, roles = list(function.args), set(given_roles)
        self.given = [arg for arg in args if arg.role in roles]
        self.results = [arg for arg in args if arg.role not in roles and arg.role != "workspace"]
        fresh = self.results + [arg for arg in args if arg.role == "workspace"]
        self._pool = pool = self.given + fresh
        self._order = [pool.index(arg) for arg in args]
        self._call = function.call
        sizes = sorted({dim for arg in self.given for dim in arg.shape if _is_name(dim)})
        places = first_uses([arg.shape for arg in self.given if not _is_flat(arg)], sizes)
        direct = [i for i, arg in enumerate(self.given) if not _is_flat(arg)]
        self._sizes_at = [(direct[places[name][0]], places[name][1]) for name in sizes]
        self._fresh = shapes_function([arg.shape for arg in fresh], sizes)
        self._dtypes = [DTYPES[arg.dtype] for arg in fresh]
        self._flat_results = [i for i, arg in enumerate(self.results) if _is_flat(arg)]
        self._flat_given = [i for i, arg in enumerate(self.given) if _is_flat(arg)]
        self._unflattened = shapes_function([self.given[i].shape for i in self._flat_given], sizes)

    def run(self, given: Tensors) -> list[torch.Tensor]:
        """Call the compiled function."""
        sizes = [given[i].shape[d] for i, d in self._sizes_at]
        device, shapes, key = given[0].device, self._fresh(*sizes), (*sizes,)
        if self._wider and key not in self._narrow:
            if max(map(math.prod, [x.shape for x in given] + [*shapes])) >= LIMIT:
                if device.type != "cuda":
                    self._too_large([*(x.shape for x in given), *shapes])
                return self._wider().run(given)
            if len(self._narrow) >= _REMEMBERED:
                self._narrow.clear()
            self._narrow.add(key)
        fresh = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in zip(shapes, self._dtypes, strict=True)]
        alignment = GPU_ALIGNMENT if device.type == "cuda" else ALIGNMENT
        pool = [_ready(x, alignment) for x in given]
        for i, shape in zip(self._flat_given, self._unflattened(*sizes), strict=True):
            pool[i] = pool[i].view(shape)
        pool += fresh
        self._call([pool[i] for i in self._order])
        results = fresh[: len(self.results)]
        for i in self._flat_results:
            results[i] = results[i].view(-1)
        return results

    def _too_large(self, shapes: Sequence[Sequence[int]]) -> NoReturn:
        shape = max(shapes, key=math.prod)
        arg = self._pool[list(shapes).index(shape)]
        raise ArgumentError(
            f"{arg.name} ({arg.role}) has shape {list(shape)}, {math.prod(shape)} elements, must be below 2**31; split the batch"
        )

    def fake(self, given: Tensors) -> list[torch.Tensor]:
        """The results without their values."""
        shapes: list[tuple[int, ...]] = [*self._fresh(*[given[i].shape[d] for i, d in self._sizes_at])]
        for i in self._flat_results:
            shapes[i] = (math.prod(shapes[i]),)
        kept = list(zip(shapes, self._dtypes, strict=True))[: len(self.results)]
        return [torch.empty(shape, dtype=dtype, device=given[0].device) for shape, dtype in kept]


def _is_name(dim: int | str) -> bool:
    return isinstance(dim, str) and dim.isidentifier()


def _is_flat(arg: Any) -> bool:
    return arg.role == "saved" and any(isinstance(dim, str) and not dim.isidentifier() for dim in arg.shape)


class Loaded:
    """The library of one instance in this process, for the CPU or for one kind of GPU; `wide` for tensors of any size.

    `tf32` says whether its products of float32 tensors are in TF32; `key`, which the backward is found by, does not.
    """

    def __init__(
        self, instance: Instance, bundle: Any, card: Card | None = None, wide: Loading | None = None, tf32: bool = False
    ) -> None:
        self.tf32 = tf32
        self.instance, self.bundle, self.key, self.card = instance, bundle, instance.key, card
        given = ["input", "output", "saved", "grad_output"]
        self.forward = Entry(bundle.function("forward"), ["input"], (lambda: wide().forward) if wide else None)
        self.backward = Entry(bundle.function("backward"), given, (lambda: wide().backward) if wide else None)
        outputs = instance.mechanism.results(instance.config)
        kept = [arg.name for arg in (*self.forward.given, *self.forward.results)]
        gradients = [f"grad_{spec.name}" for spec in outputs]
        inputs = [spec.name for spec in instance.mechanism.arguments(instance.config)]
        self.constant = [i for i, arg in enumerate(self.forward.results) if i >= len(outputs) or not outputs[i].differentiable]
        """Results of the forward that nobody differentiates: saved tensors, and outputs that say so."""
        try:
            self.kept = [kept.index(arg.name) for arg in self.backward.given if arg.role != "grad_output"]
            """What the backward needs of the forward's inputs and results, as indices into both."""
            self.grads = [gradients.index(arg.name) for arg in self.backward.given if arg.role == "grad_output"]
            """The outputs whose gradients the backward takes."""
            self.grad_inputs = [inputs.index(arg.name.removeprefix("grad_")) for arg in self.backward.results]
            """The inputs that the backward's results belong to."""
        except ValueError as error:
            raise BundleError(f"the backward of {self.key} does not fit its forward ({error}); build it again") from None


Loading = Callable[[], Loaded]


def load_bundle(instance: Instance, gpu: int | None = None, wide: bool = False, tf32: bool = False) -> Any:
    """The bundle of `instance` for the CPU or the GPU numbered `gpu` from the disk cache, compiled first when it is not there."""
    from tilegen import build

    return build.load_or_compile(instance, gpu, wide, tf32)


def loaded(instance: Instance, device: torch.device, wide: bool = False, tf32: bool = False) -> Loaded:
    """The library of `instance` for `device`, loaded once a process for all devices of a kind.

    Parameters
    ----------
    wide : for tensors of any size.
    tf32 : whether products of float32 tensors may be in TF32; of no account where there is none.
    """
    gpu = number(device)
    card = None if gpu is None else gpus.of_device(gpu)
    tf32 = tf32 and _has_tf32(instance, card)
    key = (instance.key, card, wide, tf32)
    with _lock:
        if key not in _loaded:
            wider = None if wide else functools.partial(loaded, instance, device, True, tf32)
            _loaded[key] = found = Loaded(instance, load_bundle(instance, gpu, wide, tf32), card, wider, tf32)
            _log.info("%s on %s: %s", key[0], device, ", ".join(map(_words, _records(found))) or "no tunable kernels")
        return _loaded[key]


def loaded_by_key(key: str, device: torch.device) -> Loaded:
    """The library of the instance that `key` describes for `device`, with products in TF32 if torch allows them now."""
    gpu, tf32 = number(device), device.type == "cuda" and precision.tf32_allowed()
    card = None if gpu is None else gpus.of_device(gpu)
    found = _loaded.get((key, card, False, tf32))
    if found is None and tf32:
        found = _loaded.get((key, card, False, False))
        found = None if found is None or _has_tf32(found.instance, card) else found
    return loaded(Instance.from_key(key), device, tf32=tf32) if found is None else found


def _has_tf32(instance: Instance, card: Card | None) -> bool:
    """Whether there is TF32 for the products of an instance."""
    return instance.dtype == "float32" and card is not None and card.capability >= TF32


def number(device: torch.device) -> int | None:
    """The number of a GPU, None for the CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def provenance(op: str) -> dict[str, list[dict[str, Any]]]:
    """What the libraries of `op` that this process has loaded were built from.

    Returns
    -------
    dict
        For each instance (config, sizes and dtype as JSON; on a GPU also its kind, and "products" where those are in TF32) one entry
        a kernel: the function it belongs to, its rule, the source of its schedule ("user", "shipped", "nearest" or "default") and
        the record's id; where TF32 is allowed also its "products", "tf32" or "float32".
    """
    return {_place(found): _records(found) for found in _loaded.values() if found.instance.mechanism.name == op}


def _place(found: Loaded) -> str:
    """What a library was built from and for, as JSON."""
    if found.card is None:
        return found.key
    more = {"device": found.card.name} | ({"products": "tf32"} if found.tf32 else {})
    return json.dumps(json.loads(found.key) | more, sort_keys=True, separators=(",", ":"))


def _records(found: Loaded) -> list[dict[str, Any]]:
    return [dict(record) for record in found.bundle.manifest.provenance]


def _words(record: dict[str, Any]) -> str:
    chosen = record.get("source", "unknown")
    return f"{record.get('kernel', 'kernel')} {chosen}" + (f" {record['record']}" if record.get("record") else "")


def _ready(x: torch.Tensor, alignment: int) -> torch.Tensor:
    """`x` as compiled code wants it: contiguous and aligned."""
    x = x.contiguous()
    return x if x.data_ptr() % alignment == 0 else x.clone()
