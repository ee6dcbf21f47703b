"""An operator that keeps a shared value shared.

TVM's simplifier substitutes the value of a variable wherever the variable is used, and with it everything below: a chain of
shared values grows exponentially.  A value that may depend on memory is left alone, so every binding goes through `keep`,
which says that of itself and vectorises.  `tilegen.build.pipeline` replaces it before code generation; elsewhere it vanishes
when intrinsics are lowered.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir

NAME = "tirx.tilegen_keep"
READS_STATE = 2  # tirx::CallEffectKind::kReadState


def _register() -> None:
    if NAME in set(ir.Op.list_op_names()):
        return
    tvm_ffi.get_global_func("ir.RegisterOp")(NAME, "The identity, opaque to the simplifier")
    ir.register_op_attr(NAME, "TVectorizable", True)
    ir.register_op_attr(NAME, "TCallEffectKind", READS_STATE)
    ir.register_op_attr(NAME, "TScriptPrinterName", "keep")
    for target in ("llvm", "cuda"):
        tvm_ffi.get_global_func("tirx.RegisterOpLowerIntrinsic")(NAME, lambda call: call.args[0], target, 10)


_register()


def keep(value: Any) -> Any:
    """`value`, which the simplifier may not substitute where it is bound."""
    return ir.Call(ir.Op.get(NAME), [value], ret_ty=value.ty)


def kept(expr: Any) -> Any | None:
    """What `keep` was given, or None for any other expression."""
    return expr.args[0] if isinstance(expr, ir.Call) and getattr(expr.op, "name", "") == NAME else None
