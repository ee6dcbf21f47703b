"""Kernels for GPUs, written thread by thread.

Every pattern of the planner has a lowering here that takes the kernel and the decisions of a schedule rule, and emits TIR with
explicit blocks, threads, shared memory and barriers.  Sizes of machines are arguments; no mechanism, no stage name.
"""
