"""The public operators of short-long convolution: the parallel form, merged branches, two-sided kernels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from tilegen.errors import ArgumentError
from tilegen.ops.short_long_conv import BLOCKS, MECHANISM, SPECTRUM, BlockConfig, Config
from tilegen.ops.short_long_conv.form import by_blocks
from tilegen.ops.short_long_conv.tables import tables as transforms
from tilegen.torch import operator
from tilegen.torch.arguments import acc_dtype, described
from tilegen.torch.packing import tables

_call, _spectrum, _blocks = operator(MECHANISM), operator(SPECTRUM), operator(BLOCKS)


def short_long_conv(
    x: Tensor,
    short: Tensor,
    long: Tensor,
    *,
    causal: bool = True,
    branches: Sequence[Tensor] = (),
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """A short depthwise convolution, SiLU, and a long depthwise convolution.

    ::

        y = K_l * silu(K_s * x)          (K * x)_t = sum_l K_l x_{t-l}

    over l = 0 .. K-1 when causal.  Otherwise kernels are centred: tap l of K = 2r + 1 reaches l - r positions back, so it sees
    both ways; `two_sided_kernel` makes one from a kernel for the past and one for the future.  x is zero outside of the
    sequence: nothing wraps around, and a kernel may be longer than the sequence.  Differentiable once, in all tensors.

    Parameters
    ----------
    x : [B, T, C], a floating dtype (float16, bfloat16, float32, float64); any T >= 1 and any strides.
    short : [C, Ks], the dtype of x; a library is compiled for each Ks (3 to 7 are usual).
    long : [C, Kl], the dtype of x; any Kl >= 1 without another compilation.
    causal : position t sees 0 .. t only; without it Ks and Kl must be odd.
    branches : kernels [C, K] parallel to the long one, which see the same hidden sequence; they are merged into it first.
    cu_seqlens : int32 [S+1], the bounds of S packed sequences (first 0, last T), none of which sees another; B is 1 then.

    Returns
    -------
    y [B, T, C] in the dtype of x.

    Raises
    ------
    ArgumentError
        When an argument does not fit; names it and says what to do.

    Notes
    -----
    CHELA (Liu et al., 2024), Eq. 8.  Sums are kept in float32 (float64 for float64), what lies between the two convolutions in
    the dtype of x.  The cost is that of the definition,
    2 C (Ks + Kl) operations a position: matrix products where the machine has them for the dtype of x (docs/gpu.md).

    On CPUs, with channels in multiples of 8 and no cu_seqlens, long kernels of long sequences (``form.py``) are computed by blocks and
    a transform over these: operations grow as the square root of the length.  As with every transform, a result then has the rounding
    errors of all others of its channel, later ones too, and a NaN or infinity in one position spreads to all.
    """
    config = Config(causal, cu_seqlens is not None)
    for name, kernel in (("short", short), ("long", long)):
        _check_kernel(name, kernel, causal)
    if isinstance(branches, Tensor) or branches:
        long = merge_branches(long, branches, causal=causal)
    if cu_seqlens is None and (blocks := by_blocks(causal, x, long)) is not None:
        return _by_blocks(blocks, x, short, long)
    # Taps first: every vector of the compiled loops is then contiguous, as it is in x.
    tensors = {"x": x, "short": short.t(), "long": long.t()}
    if cu_seqlens is not None:
        tensors = tables(MECHANISM.lengths(config), cu_seqlens, "x", x) | tensors
    (y,) = _call(config, tensors)
    return y


def _by_blocks(config: BlockConfig, x: Tensor, short: Tensor, long: Tensor) -> Tensor:
    """The same with the long convolution by blocks; a kernel of one tap leaves the hidden sequence as it is."""
    (hidden,) = _call(Config(config.causal), {"x": x, "short": short.t(), "long": long.new_ones(1, long.shape[0])})
    table = transforms(config, acc_dtype(hidden.dtype), hidden.device)
    # Whole blocks, with what no position sees cut off: of a causal kernel the taps begin at lag 0, else at that of the first block.
    time, taps, room = x.shape[1], long.shape[1], config.blocks * config.length
    before = 0 if config.causal else room - (taps - 1) // 2
    whole = F.pad(long, (before, config.lags * config.length - before - taps)).t().unsqueeze(0)
    (kernels,) = _spectrum(config, {"taps": whole, "v": table.v, "w": table.w})
    given = {"kernels": kernels, "u": table.u, "g": table.g, "a": table.a, "z": table.z}
    (y,) = _blocks(config, given | {"x": F.pad(hidden, (0, 0, 0, room - time)) if time < room else hidden})
    return y[:, :time] if time < room else y


def merge_branches(kernel: Tensor, branches: Sequence[Tensor], *, causal: bool = True) -> Tensor:
    """The one kernel that does what `kernel` and all `branches` do side by side: structural re-parameterisation.

    Parallel convolutions of the same input are one convolution with the sum of their kernels, aligned at lag 0: the first tap
    when causal, the centre otherwise.  Scales (those of a norm in eval mode, say) are folded in by the caller: ``scale[:, None] *
    kernel``.  It cannot cross the SiLU: a branch that sees x instead of the hidden sequence does not merge.

    Parameters
    ----------
    kernel : [C, K]; branches : each [C, K_i].

    Returns
    -------
    [C, max of all K], differentiable in all of them.
    """
    if not isinstance(branches, (list, tuple)):
        raise ArgumentError(f"branches is a {type(branches).__name__}, must be a list of kernels [C, K]")
    kernels = [kernel, *branches]
    for i, each in enumerate(kernels):
        name = f"branches[{i - 1}]" if i else "kernel"
        _check_kernel(name, each, causal)
        if each.shape[0] != kernel.shape[0] or each.dtype != kernel.dtype:
            raise ArgumentError(
                f"{name} is {list(each.shape)} of {each.dtype}, must be [C, K] of {kernel.dtype} with C = {kernel.shape[0]}"
            )
    taps = max(each.shape[1] for each in kernels)

    def aligned(each: Tensor) -> Tensor:
        missing = taps - each.shape[1]
        return F.pad(each, (0, missing) if causal else (missing // 2, missing // 2))

    merged = aligned(kernel)
    for each in branches:
        merged = merged + aligned(each)
    return merged


def two_sided_kernel(past: Tensor, future: Tensor) -> Tensor:
    """A centred kernel for ``causal=False`` from one for each direction.

    Parameters
    ----------
    past : [C, K], lags 0 .. K-1; future : [C, K-1], of the positions 1 .. K-1 ahead.

    Returns
    -------
    [C, 2K-1], differentiable in both.
    """
    _check_kernel("past", past, True)
    if not isinstance(future, Tensor) or future.shape != (past.shape[0], past.shape[1] - 1):
        what = list(future.shape) if isinstance(future, Tensor) else type(future).__name__
        raise ArgumentError(
            f"future is {what}, must be a tensor [C, K-1] = {[past.shape[0], past.shape[1] - 1]} beside past [C, K]"
        )
    return F.pad(past, (past.shape[1] - 1, 0)) + F.pad(future.flip(1), (0, past.shape[1]))


def _check_kernel(name: str, kernel: Tensor, causal: bool) -> None:
    if not isinstance(kernel, Tensor) or kernel.dim() != 2 or kernel.shape[1] < 1:
        raise ArgumentError(f"{name} has {described(kernel)}, must be a tensor [C, K] with K >= 1 taps")
    if not causal and kernel.shape[1] % 2 == 0:
        raise ArgumentError(
            f"{name} has {kernel.shape[1]} taps, must have an odd number with causal=False: the middle one is lag 0; "
            "pad it with a zero, or make it with two_sided_kernel"
        )
