"""Rules for CPUs through LLVM: vector lanes, one-level parallelism, states in registers or the first-level cache."""
