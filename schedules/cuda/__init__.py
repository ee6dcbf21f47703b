"""Rules for NVIDIA GPUs: which sizes the lowerings of `tilegen.plan.gpu` take for a pattern on a machine.

Every module here is named after a pattern and has a list ``RULES`` of `DeviceRule` objects; the first that fits a kernel decides.
"""
