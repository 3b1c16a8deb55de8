"""What `prefopt doctor` finds out: packages, devices, folders, and which recipes fit."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from prefopt import __version__
from prefopt.commands.plan_numbers import GIB, Hardware, make_plan, modes_on
from prefopt.config import load_recipe
from prefopt.data.cache_entries import cache_entries
from prefopt.data.section import default_cache_folder
from prefopt.models.attention import why_not_varlen

_HEAD_SIZES = (64, 128)
# `all` names extras, whose packages come by themselves.
_NOT_FOR_USERS = ("dev", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package that prefopt, or one of its extras, asks for."""

    name: str
    wanted: str
    """The versions that will do, such as `<6,>=5.17`; "" for any."""
    installed: str | None
    """None if it is missing."""
    extra: str | None
    """What brings it; None for what prefopt cannot do without."""

    @property
    def problem(self) -> str | None:
        """What is wrong with it and the way out; None if nothing is."""
        source = f"prefopt[{self.extra}]" if self.extra else "prefopt"
        if self.installed is None:
            return f"missing: pip install '{source}'"
        if not Requirement(self.name + self.wanted).specifier.contains(
            self.installed, prereleases=True
        ):
            return f"{self.installed} is not {self.wanted}: pip install '{source}'"
        return None

    @property
    def is_serious(self) -> bool:
        """Whether a run may fail for it: a missing package of an extra is no fault."""
        is_wrong = self.problem is not None
        return is_wrong and (self.extra is None or self.installed is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What trains."""

    name: str
    memory: float
    """In GiB."""
    attention: str
    """What attends over flat rows there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A folder that is written to."""

    name: str
    path: Path
    free: int
    """Bytes of its disk."""
    used: int | None = None
    """Bytes of what is kept there, for the cache."""
    problem: str | None = None
    """Why nothing can be written there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A recipe on the devices that are here."""

    recipe: str
    totals: dict[str, float]
    """Mode -> GiB of one device."""
    fitting: list[str] = field(default_factory=list)
    """The modes that fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """All that was found."""

    prefopt: str
    python: str
    system: str
    packages: list[Package]
    devices: list[Device]
    places: list[Place]
    fits: list[Fit]

    @property
    def is_well(self) -> bool:
        """Whether nothing needed is broken."""
        return not (
            any(package.is_serious for package in self.packages)
            or any(place.problem for place in self.places)
        )


def gather(recipes: Sequence[Path]) -> Facts:
    """Look at this machine; nothing outside it is asked, and nothing is left on it.

    Args:
        recipes: files of recipes to plan for the devices that are here.

    Raises:
        UserError: for a recipe that is none, or whose model is not here.
    """
    devices = _devices()
    return Facts(
        prefopt=__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        packages=_packages(),
        devices=devices,
        places=[
            _place("cache", default_cache_folder(), is_cache=True),
            _place("here", Path.cwd()),
        ],
        fits=[_fit(path, devices) for path in recipes],
    )


def _packages() -> list[Package]:
    """In the order of pyproject.toml; those for developers are not looked at."""
    found: dict[str, Package] = {}
    for text in metadata.requires("prefopt") or ():
        requirement = Requirement(text)
        extra = _extra_of(requirement)
        if extra in _NOT_FOR_USERS or requirement.name in found:
            continue
        found[requirement.name] = Package(
            name=requirement.name,
            wanted=str(requirement.specifier),
            installed=_installed(requirement.name),
            extra=extra,
        )
    return list(found.values())


def _extra_of(requirement: Requirement) -> str | None:
    if requirement.marker is None:
        return None
    names = metadata.metadata("prefopt").get_all("Provides-Extra") or []
    return next((name for name in names if requirement.marker.evaluate({"extra": name})), None)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[Device]:
    """GPUs, or the processor where there is none."""
    if not torch.cuda.is_available():
        return [
            Device(
                name=f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores",
                memory=psutil.virtual_memory().total / GIB,
                attention="our own on CPUs, for tests and small models",
            )
        ]
    return [_gpu(torch.device("cuda", i)) for i in range(torch.cuda.device_count())]


def _gpu(device: torch.device) -> Device:
    about = torch.cuda.get_device_properties(device)
    slow = [reason for size in _HEAD_SIZES if (reason := why_not_varlen(device, size))]
    return Device(
        name=f"{about.name}, compute capability {about.major}.{about.minor}",
        memory=about.total_memory / GIB,
        attention=f"one response at a time: {slow[0]}" if slow else "flash kernels of torch",
    )


def _place(name: str, path: Path, *, is_cache: bool = False) -> Place:
    existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    is_free = os.access(existing, os.W_OK | os.X_OK)
    used = sum(entry.num_bytes for entry in cache_entries(path)) if path.is_dir() else 0
    way_out = "set PREFOPT_CACHE to another folder" if is_cache else "go to another folder"
    return Place(
        name=name,
        path=path,
        free=shutil.disk_usage(existing).free,
        used=used if is_cache else None,
        problem=None if is_free else f"{existing} cannot be written to: {way_out}",
    )


def _fit(path: Path, devices: Sequence[Device]) -> Fit:
    hardware = Hardware(num_gpus=len(devices), gpu_memory=min(device.memory for device in devices))
    # Without a GPU there is nothing to offload from.
    modes = modes_on(len(devices)) if torch.cuda.is_available() else ("single",)
    plan = make_plan(load_recipe(path), modes, hardware)
    return Fit(
        recipe=str(path),
        totals={each.mode: each.total / GIB for each in plan.modes},
        fitting=[each.mode for each in plan.modes if each.fits],
    )
