"""An operator outside `tilegen.ops`, which tuning processes must import before they know it."""

import tilegen
from tilegen.expression import scan


@tilegen.mechanism(inputs={"x": "B T C", "a": "B T C"}, outputs={"y": "B T C"})
def tuned_recurrence(config, dims, x, a):  # type: ignore[no-untyped-def]
    """y_t = a_t y_{t-1} + x_t"""
    return scan(x, axis=1, decay=a, name="y")
