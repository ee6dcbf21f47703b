"""What a bundle says about itself: the content of its ``manifest.json``.

Plain dataclasses and `json`: a bundle must load where nothing but tvm-ffi and numpy is installed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tilegen.bundle import shapes
from tilegen.errors import BundleError

SCHEMA = 1
"""The version of the manifest's form; raised whenever an older reader would misread it."""

FILE = "manifest.json"
LIBRARY = "lib.so"
"""The library of a bundle; CUDA code without compiled launchers is in its place ``<arch>.cubin`` for each architecture."""

CUBIN = ".cubin"
LAUNCHES = "launches.json"
"""Beside cubins: what each function launches; see `tilegen.build.launches`."""

LIMIT = 1 << 31
"""Elements that a tensor may not reach where compiled code counts them in 32 bits."""

OFFSETS = "offsets"
"""The key of a target's description under which 64 stands where tensors may have `LIMIT` elements and more."""

PRODUCTS = "products"
"""The key of a target's description under which "tf32" stands where operands of float32 products are rounded to TF32."""

RUNTIME = "libtvm_runtime.so"
"""The name under which a bundle carries TVM's runtime library, which parallel CPU code calls."""

ROLES = frozenset({"input", "output", "saved", "grad_output", "grad_input", "workspace"})
DTYPES = frozenset({"float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"})

# A name of a file beside the manifest: no folders, nothing hidden.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")
_DAMAGED = "the bundle is damaged or was written by other software; export it again"

T = TypeVar("T")


@dataclass(frozen=True)
class Argument:
    """One tensor argument of a compiled function.

    `shape` holds ints and expressions of symbolic sizes; `dtype` is concrete; `role` is one of `ROLES`.
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class EntryPoint:
    """One compiled function: its symbol in the library and its arguments in call order."""

    symbol: str
    args: tuple[Argument, ...]

    @functools.cached_property
    def given(self) -> tuple[Argument, ...]:
        """The arguments that the caller passes.  Outputs and saved tensors are results of a forward and inputs of a backward."""
        results = {"workspace", "grad_input"} if self.is_backward else {"workspace", "output", "saved"}
        return tuple(arg for arg in self.args if arg.role not in results)

    @functools.cached_property
    def returned(self) -> tuple[Argument, ...]:
        """The arguments whose values are the function's results: outputs, or gradients of inputs."""
        role = "grad_input" if self.is_backward else "output"
        return tuple(arg for arg in self.args if arg.role == role)

    @functools.cached_property
    def is_backward(self) -> bool:
        return any(arg.role in {"grad_output", "grad_input"} for arg in self.args)


@dataclass(frozen=True)
class Manifest:
    """Everything a loader must know before it runs code of a bundle.

    `checksum` is the SHA-256 of all other fields, `files` that of every file beside the manifest; both are filled in by
    `tilegen.bundle.pack.write`.
    """

    op: str
    config: dict[str, Any]
    dtype: str
    static: dict[str, int]
    symbolic: tuple[str, ...]
    target: dict[str, Any]
    functions: dict[str, EntryPoint]
    tilegen: str
    versions: dict[str, str] = field(default_factory=dict)
    provenance: tuple[dict[str, Any], ...] = ()
    library: str = LIBRARY
    files: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    checksum: str = ""

    def sealed(self, files: Mapping[str, str]) -> Manifest:
        """This manifest with the checksums of `files` and of itself."""
        manifest = dataclasses.replace(self, files=dict(files))
        return dataclasses.replace(manifest, checksum=_checksum(dataclasses.asdict(manifest)))

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read ``manifest.json``.

        Raises
        ------
        BundleError
            When it is not JSON, was written for another schema, does not match its checksum, or a field is missing or wrong.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{FILE} is not JSON ({error}); {_DAMAGED}") from None
        _expect(raw, dict, "the manifest")
        # First of all, for fields may mean something else in another schema.
        if raw.get("schema") != SCHEMA:
            raise BundleError(
                f"{FILE} has schema {raw.get('schema')!r}, this tilegen reads schema {SCHEMA}; export the bundle again, or "
                f"install the tilegen that wrote it ({raw.get('tilegen', 'unknown')})"
            )
        if raw.get("checksum") != _checksum(raw):
            raise BundleError(f"{FILE} does not match its checksum; {_DAMAGED}")
        return _manifest(raw)


def _checksum(raw: Mapping[str, Any]) -> str:
    content = {key: value for key, value in raw.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _manifest(raw: dict[str, Any]) -> Manifest:
    wanted = {spec.name for spec in dataclasses.fields(Manifest)}
    if set(raw) != wanted:
        raise BundleError(f"{FILE} has wrong or missing fields {sorted(set(raw) ^ wanted)}; {_DAMAGED}")
    for key in ("op", "dtype", "tilegen", "library"):
        _expect(raw[key], str, key)
    for key in ("config", "target", "functions"):
        _expect(raw[key], dict, key)
    for name, size in _expect(raw["static"], dict, "static").items():
        _expect(size, int, f"static.{name}")
    for key in ("versions", "files"):
        for name, value in _expect(raw[key], dict, key).items():
            _expect(value, str, f"{key}.{name}")
    for name in raw["files"]:
        if not _FILE_NAME.match(name) or name == FILE:
            raise BundleError(f"files has the name {name!r}, must be a plain file name; {_DAMAGED}")
    if raw["library"] not in raw["files"]:
        raise BundleError(f"library is {raw['library']!r}, must be one of {sorted(raw['files'])}; {_DAMAGED}")
    symbolic = tuple(_expect(name, str, "symbolic") for name in _expect(raw["symbolic"], list, "symbolic"))
    provenance = tuple(_expect(item, dict, "provenance") for item in _expect(raw["provenance"], list, "provenance"))
    functions = {name: _entry(value, f"functions.{name}") for name, value in raw["functions"].items()}
    manifest = Manifest(**raw | {"symbolic": symbolic, "provenance": provenance, "functions": functions})
    for name, entry in functions.items():
        _check_sizes(name, entry, manifest.static)
    return manifest


def _entry(raw: Any, where: str) -> EntryPoint:
    _expect(raw, dict, where)
    symbol = _expect(raw.get("symbol"), str, f"{where}.symbol")
    args = _expect(raw.get("args"), list, f"{where}.args")
    return EntryPoint(symbol, tuple(_argument(arg, f"{where}.args[{i}]") for i, arg in enumerate(args)))


def _argument(raw: Any, where: str) -> Argument:
    _expect(raw, dict, where)
    name = _expect(raw.get("name"), str, f"{where}.name")
    role = _one_of(raw.get("role"), ROLES, f"{where}.role")
    dtype = _one_of(raw.get("dtype"), DTYPES, f"{where}.dtype")
    shape = []
    for dim in _expect(raw.get("shape"), list, f"{where}.shape"):
        if isinstance(dim, str):
            shapes.parse(dim)
        elif _expect(dim, int, f"{where}.shape") < 0:
            raise BundleError(f"{where}.shape has the dim {dim}, must not be negative; {_DAMAGED}")
        shape.append(dim)
    return Argument(name, role, dtype, tuple(shape))


def _check_sizes(name: str, entry: EntryPoint, static: Mapping[str, int]) -> None:
    """Arguments are told apart by name, and every size of every argument must follow from what the caller passes."""
    if len({arg.name for arg in entry.args}) < len(entry.args):
        raise BundleError(f"functions.{name} has two arguments of one name among {[arg.name for arg in entry.args]}; {_DAMAGED}")
    known = shapes.determined((arg.shape for arg in entry.given), static)
    for arg in entry.args:
        if missing := set().union(*(shapes.names(dim) for dim in arg.shape)) - known:
            raise BundleError(
                f"{name}: shape {list(arg.shape)} of {arg.name} needs {sorted(missing)}, which no argument determines; {_DAMAGED}"
            )


def _expect(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BundleError(f"{where} is {str(value)[:60]!r}, must be of JSON type {kind.__name__}; {_DAMAGED}")
    return value


def _one_of(value: Any, choices: frozenset[str], where: str) -> str:
    if not isinstance(value, str) or value not in choices:
        raise BundleError(f"{where} is {str(value)[:60]!r}, must be one of {', '.join(sorted(choices))}; {_DAMAGED}")
    return value
