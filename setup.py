"""Lists the packages below every root that pyproject.toml maps; new subpackages are found without an edit."""

from setuptools import find_packages, setup

ROOTS = {"tilegen": "tilegen", "tilegen.ops": "ops", "tilegen.schedules": "schedules"}

packages = ["tilegen.tuning_logs"]
for name, folder in ROOTS.items():
    packages += [name] + [f"{name}.{sub}" for sub in find_packages(folder)]

setup(packages=packages)
