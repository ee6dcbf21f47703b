"""What the synthetic device's kernels decide."""

NAMES = ["channels", "width", "steps", "groups", "ahead"]
CATEGORIES = [[32, 1, 2, 4, 8, 16, 64], [1, 2, 4], [8, 1, 2, 4, 16], [8, 1, 2, 4, 16, 32], [1, 0, 2]]
