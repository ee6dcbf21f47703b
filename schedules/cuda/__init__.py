"""Rules for NVIDIA GPUs: which sizes the lowerings of `tilegen.plan.gpu` take for a pattern on a machine."""
