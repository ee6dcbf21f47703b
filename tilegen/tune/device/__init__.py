"""Tuning kernels of devices that are not the CPU: what builds, measures and searches them.

``build`` and ``cases`` run in building processes, ``measure`` (with ``memory`` and ``driver``) in the one process that owns the
device, ``space``, ``propose`` and ``search`` in the user's.
"""
