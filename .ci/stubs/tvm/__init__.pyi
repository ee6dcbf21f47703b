# TVM has no types of its own: everything in it is Any, and names of its classes can be given other names.
from typing import Any

def __getattr__(name: str) -> Any: ...
