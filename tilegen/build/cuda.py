"""CUDA C++ text of planned functions: kernels, and the host functions that launch them through tvm-ffi.

The lowerings of `tilegen.plan.gpu` write threads, shared memory and barriers themselves, so none of TVM's passes that place
any of these runs here: they would merge buffers and drop or add barriers on assumptions that warp-wide loads do not keep.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilegen import _tvm

_tvm.ensure()

import tvm  # noqa: E402
from tvm import tirx  # noqa: E402
from tvm.backend.cuda.host import export_cuda_host  # noqa: E402
from tvm.tirx import compilation_pipeline  # noqa: E402

from tilegen.build import compilers, nvcc, nvrtc  # noqa: E402
from tilegen.build.divisions import TruncateDivisions  # noqa: E402
from tilegen.build.launches import launches  # noqa: E402
from tilegen.build.pipeline import SpillKept  # noqa: E402
from tilegen.build.target import BuildTarget, resolve  # noqa: E402
from tilegen.build.wide import widened  # noqa: E402
from tilegen.bundle.manifest import CUBIN, LAUNCHES, LIBRARY  # noqa: E402
from tilegen.errors import BuildError  # noqa: E402
from tilegen.mechanisms import Instance  # noqa: E402
from tilegen.plan.gpu.func import LAUNCHES as COUNTS  # noqa: E402

if TYPE_CHECKING:
    from tilegen.build.library import Parts

NAME = "tilegen_cuda"

# Loops to unroll are left to nvcc, under `#pragma unroll`: the text stays readable, and arrays of registers stay registers.
OPTIONS = {"tirx.UnrollLoop": {"explicit_unroll": False}}


_recorded: ContextVar[dict[str, list[dict[str, Any]]]] = ContextVar("launches of what is being compiled")


@tvm.transform.module_pass(opt_level=0)
def RecordLaunches(mod: tvm.IRModule, context: Any) -> tvm.IRModule:
    """Keep what host functions launch for `kernels`; changes nothing."""
    if (found := _recorded.get(None)) is not None:
        found |= launches(mod)
    return mod


def _factory() -> tuple[Any, Any, Any]:
    body = [
        SpillKept,
        tirx.transform.FlattenBuffer(),
        tirx.transform.BF16ComputeLegalize(),
        tirx.transform.NarrowDataType(32),
        TruncateDivisions,
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        RecordLaunches,
        tirx.transform.MakePackedAPI(),
        tirx.transform.BF16StorageLegalize(),
    ]
    # TVM calls the first of the results as a pass, the other two to get a pass.
    host = [tirx.transform.LowerTVMBuiltin(), tirx.transform.LowerIntrin()]
    device = [tirx.transform.StmtSimplify(), tirx.transform.LowerIntrin()]
    return tvm.transform.Sequential(body), lambda: tvm.transform.Sequential(host), lambda: tvm.transform.Sequential(device)


compilation_pipeline.register_tir_pipeline(NAME, _factory)


def generate(parts: Mapping[str, Any], target: BuildTarget) -> str:
    """The text of functions by symbol, one translation unit of kernels and launchers.

    Raises
    ------
    BuildError
        When code generation fails.
    """
    return _generated(parts, target, export_cuda_host)


def kernels(parts: Mapping[str, Any], target: BuildTarget) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """The text of the kernels alone, and by symbol what each function launches; see `tilegen.build.launches`."""
    token = _recorded.set({})
    try:
        text = _generated(parts, target, lambda module: "\n".join(part.inspect_source("cuda") for part in module.imports))
        return text, _recorded.get()
    finally:
        _recorded.reset(token)


def _generated(parts: Mapping[str, Any], target: BuildTarget, text: Callable[[Any], str]) -> str:
    if target.wide:
        parts = {symbol: widened(func) for symbol, func in parts.items()}
    try:
        with tvm.transform.PassContext(opt_level=3, config=OPTIONS):
            return text(tvm.compile(tvm.IRModule(dict(parts)), target=target.tvm, tir_pipeline=NAME).mod)
    except Exception as error:
        raise BuildError(f"code generation for {target.description['arch']} failed: {error}") from error


def build(made: Parts, target: BuildTarget, out: Path, compiler: str) -> tuple[str, dict[str, str]]:
    """Compile scheduled functions into the folder `out`; each kernel's entry in the provenance gets what the compiler says of it.

    Parameters
    ----------
    compiler : "nvcc" makes one library with launchers; "nvrtc" a cubin for each architecture and a table of launches.

    Returns
    -------
    tuple
        The name of the library's file, and the version of the CUDA compiler by name.
    """
    archs = target.description["archs"]
    if compiler == "nvcc":
        library = LIBRARY
        resources = nvcc.compile(generate(made.parts, target), out / library, archs)
    else:
        text, table = kernels(made.parts, target)
        resources = []
        for arch in archs:
            code, found = nvrtc.compile(text, arch)
            (out / f"{arch}{CUBIN}").write_bytes(code)
            resources += found
        (out / LAUNCHES).write_text(json.dumps(table, indent=1))
        library = f"{archs[0]}{CUBIN}"
    for name, entry in made.entries.items():
        own = [kernel for kernel in made.provenance if kernel["function"] == name]
        launched = iter(_launched(entry.symbol, resources))
        counts = [int(count) for count in made.parts[entry.symbol].attrs[COUNTS]]
        for kernel, count in zip(own, counts, strict=True):
            its = list(itertools.islice(launched, count))
            kernel["compiled"] = [each.as_dict() for launch in its for each in sorted(launch, key=lambda each: each.arch)]
    return library, {"cuda": compilers.release(compiler)}


def _launched(symbol: str, resources: list[nvcc.Resources]) -> list[list[nvcc.Resources]]:
    """What a function launches, in order, each on every architecture: ``<symbol>_kernel``, ``<symbol>_kernel_1``, ..."""
    found: dict[int, list[nvcc.Resources]] = {}
    for each in resources:
        if match := re.fullmatch(rf"{symbol}_kernel(?:_(\d+))?", each.kernel):
            found.setdefault(int(match[1] or 0), []).append(each)
    return [found[number] for number in sorted(found)]


def source(instance: Instance, target: str | BuildTarget, functions: tuple[str, ...] = ("forward", "backward", "step")) -> str:
    """The CUDA C++ text that nvcc or NVRTC compiles for `functions` of `instance`; ``tilegen_<function>`` is the symbol of each.

    Parameters
    ----------
    target : "sm_90" (no card needed), "cuda", or a resolved target of that kind.
    functions : which of forward, backward and step; step is left out where the operator has none.

    Raises
    ------
    TilegenError
        Of the stage that failed.
    """
    from tilegen.build.library import scheduled_parts

    chosen = resolve(target) if isinstance(target, str) else target
    return generate(scheduled_parts(instance, functions, chosen).parts, chosen)
