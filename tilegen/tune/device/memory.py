"""What lies on the device: guarded buffers of one kernel, and all arguments of an operator at the tuned sizes (a *stage*).

At the tuned sizes a float64 reference would take minutes, and noise in place of what earlier kernels write would not be what a kernel
meets.  So the whole operator runs once with the defaults of its rules, and leaves the inputs of every kernel, and the results to
which candidates are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilegen.bundle import shapes
from tilegen.tune.case import CANARY, GUARD, Case, places
from tilegen.tune.device import driver
from tilegen.tune.gate import Array, complaint, dtype_of
from tilegen.tune.measure import Failure
from tilegen.tune.packed import table

PERIOD = 1 << 20
"""Random numbers drawn for an input; longer ones repeat them."""

SAMPLE = 1 << 18
"""Elements of a result that are compared at the tuned sizes, at equal distances."""


class Room:
    """Device memory between two guard zones."""

    def __init__(self, size: int) -> None:
        self.size, self._base = size, driver.allocate(size + 2 * GUARD)
        self.address = self._base + GUARD
        driver.fill(self._base, CANARY, size + 2 * GUARD)

    def poison(self, byte: int) -> None:
        """Set every byte."""
        driver.fill(self.address, byte, self.size)

    def intact(self) -> bool:
        """Whether nobody wrote into the guard zones."""
        zone = np.empty(GUARD, np.uint8)
        for start in (self._base, self.address + self.size):
            driver.download(zone, start)
            if not (zone == CANARY).all():
                return False
        return True

    def free(self) -> None:
        """Give the memory back."""
        driver.free(self._base)


class Started:
    """A built candidate on the device, with the addresses it works on.

    Parameters
    ----------
    library : its cubin; what it launches stands in the file beside it, see `tilegen.build.launches`.
    addresses : of its tensors by name.
    sizes : the symbolic sizes.
    """

    def __init__(self, library: str, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        path = Path(library)
        self._code = driver.Code(path.read_bytes())
        known = dict(sizes)

        def size(text: Any) -> int:
            return shapes.evaluate(text, known)

        self._launches = []
        for one in shapes.chosen(json.loads(path.with_suffix(".json").read_text())["launches"], known):
            shared = size(one["shared"])
            arguments = [addresses[a["tensor"]] if "tensor" in a else size(a["size"]) for a in one["arguments"]]
            kernel = self._code.kernel(one["kernel"], shared)
            self._launches.append(
                driver.Launch(kernel, [size(n) for n in one["grid"]], [size(n) for n in one["block"]], shared, arguments)
            )

    def __call__(self) -> None:
        for launch in self._launches:
            launch()

    def close(self) -> None:
        """Remove the code from the device; nothing of it may be running."""
        self._code.unload()


class Tensor:
    """One argument of the operator on the device."""

    def __init__(self, described: Mapping[str, Any]) -> None:
        self.dtype, self.shape = str(described["dtype"]), tuple(described["shape"])
        self.size = count_bytes(self.shape, self.dtype)
        self.address = driver.allocate(self.size)

    def randomise(self, name: str, seed: Sequence[int], sizes: Mapping[str, int]) -> None:
        """Standard normal numbers (integers: as in `normal_inputs`), repeated after `PERIOD`."""
        if (known := table(name, sizes)) is not None:
            driver.upload(self.address, np.ascontiguousarray(known.astype(dtype_of(self.dtype))))
            return
        rng, count = np.random.default_rng(seed), min(PERIOD, self.size // dtype_of(self.dtype).itemsize)
        floating = self.dtype.startswith(("float", "bfloat"))
        values = rng.standard_normal(count, np.float32) if floating else rng.integers(0, 2, count)
        if len(self.shape) == 1 and self.dtype.startswith(("int", "uint")):
            values = places(self.shape[0], sizes)[:count]
        driver.upload(self.address, np.ascontiguousarray(values.astype(dtype_of(self.dtype))))
        done = count * dtype_of(self.dtype).itemsize
        while 0 < done < self.size:
            step = min(done, self.size - done)
            driver.copy(self.address + done, self.address, step)
            done += step

    def sample(self) -> Array:
        """Some elements as float64, see `SAMPLE`."""
        host = driver.staging(0, self.size)
        driver.download(host, self.address)
        return sampled(host, self.dtype)


def sampled(data: Array, dtype: str) -> Array:
    """Elements of `data` (bytes) at equal distances, as float64."""
    values = data.view(dtype_of(dtype))
    step = max(1, values.size // SAMPLE) | 1  # odd: not the same column of every row
    found: Array = values[::step].astype(np.float64)
    return found


def stage_bytes(path: str) -> int:
    """Bytes of the tensors of the stage described in `path`."""
    tensors = json.loads(Path(path).read_text())["tensors"].values()
    return sum(count_bytes(t["shape"], str(t["dtype"])) for t in tensors)


def count_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a dense tensor."""
    return int(np.prod(shape, dtype=np.int64)) * dtype_of(dtype).itemsize


class Stage:
    """All arguments of an operator, after one run with the defaults.

    Parameters
    ----------
    path : JSON with ``sizes``, ``dtype``, ``tensors`` (by their name on the stage: dtype, shape, role) and ``kernels`` in order, each
        with ``library`` and ``names``, the name on the stage of each of its arguments.
    """

    def __init__(self, path: str, seed: int = 0) -> None:
        described = json.loads(Path(path).read_text())
        self.path, self.sizes, self.dtype = path, described["sizes"], str(described["dtype"])
        self.tensors = {name: Tensor(each) for name, each in described["tensors"].items()}
        self.rooms: dict[str, Room] = {}
        self._samples: dict[str, Array] = {}
        for position, (name, each) in enumerate(described["tensors"].items()):
            if each["role"] in ("input", "grad_output"):
                self.tensors[name].randomise(name, [seed, position], self.sizes)
            else:
                driver.fill(self.tensors[name].address, 0, self.tensors[name].size)
        for kernel in described["kernels"]:
            run = Started(kernel["library"], {a: self.tensors[n].address for a, n in kernel["names"].items()}, self.sizes)
            run()
            driver.wait()
            run.close()

    def room(self, name: str) -> Room:
        """Where candidates write the tensor `name`."""
        if name not in self.rooms:
            self.rooms[name] = Room(self.tensors[name].size)
        return self.rooms[name]

    def expected(self, name: str) -> Array:
        """A sample of what the defaults gave."""
        if name not in self._samples:
            self._samples[name] = self.tensors[name].sample()
        return self._samples[name]

    def free(self) -> None:
        """Give all memory back."""
        for room in self.rooms.values():
            room.free()
        for tensor in self.tensors.values():
            driver.free(tensor.address)


class Rehearsal:
    """All arguments of an operator at sizes with references; it runs as a whole, with a candidate in the place of one kernel.

    Parameters
    ----------
    path : see `Stage`; its ``case`` is a folder with a `tilegen.tune.case.Case`.
    """

    def __init__(self, path: str) -> None:
        described = json.loads(Path(path).read_text())
        self.case, self.sizes = Case.load(Path(described["case"])), described["sizes"]
        self.shapes = {name: (tuple(each["shape"]), str(each["dtype"])) for name, each in described["tensors"].items()}
        self.rooms = {name: Room(count_bytes(*self.shapes[name])) for name in self.shapes}
        self.names = [each["names"] for each in described["kernels"]]
        self.defaults = [self._started(each["library"], i) for i, each in enumerate(described["kernels"])]
        self._accepted: dict[str, Array] = {}

    def rejected(self, library: str, number: int) -> Failure | None:
        """Run twice on poisoned results with `library` in place of the kernel `number`; why it must not be recorded, or None."""
        candidate, images = self._started(library, number), []
        for name, values in self.case.inputs.items():
            driver.upload(self.rooms[name].address, np.ascontiguousarray(values))
        for byte in (0xFF, 0x7F):
            for name in self.rooms.keys() - self.case.inputs.keys():
                self.rooms[name].poison(byte)
            for i, default in enumerate(self.defaults):
                (candidate if i == number else default)()
            driver.wait()
            if spoiled := [name for name, room in self.rooms.items() if not room.intact()]:
                return {"kind": "outside", "message": f"wrote outside of {', '.join(spoiled)}"}
            for name, values in self.case.inputs.items():
                if self._image(name).tobytes() != np.ascontiguousarray(values).tobytes():
                    return {"kind": "outside", "message": f"changed its input {name}"}
            images.append({name: self._image(name) for name in self.case.references})
        candidate.close()
        for name, first in images[0].items():
            if first.tobytes() != images[1][name].tobytes():
                return {"kind": "unstable", "message": f"{name}: two runs differ"}
            if name in self._accepted and first.tobytes() == self._accepted[name].tobytes():
                continue
            if wrong := complaint(name, first, self.case.references[name], self.case.limits[name]):
                return {"kind": "wrong", "message": f"{wrong}; shape {list(first.shape)}"}
            self._accepted[name] = first
        return None

    def _started(self, library: str, number: int) -> Started:
        return Started(library, {name: self.rooms[there].address for name, there in self.names[number].items()}, self.sizes)

    def _image(self, name: str) -> Array:
        shape, dtype = self.shapes[name]
        found = np.empty(shape, dtype_of(dtype))
        driver.download(found, self.rooms[name].address)
        return found
