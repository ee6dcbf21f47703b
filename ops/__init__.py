"""Mechanisms: what is computed. One folder each: expression, reference, public op, step form."""
