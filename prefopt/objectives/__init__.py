"""Objectives, one file each. Every module of this package registers itself when imported."""

from importlib import import_module
from pkgutil import iter_modules

from prefopt.objectives.base import Objective, build, register, registered, weigh

__all__ = ["Objective", "build", "register", "registered", "weigh"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
