"""Which backends there are, and making them; a new vendor is one file and one line here."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from exo.gpu.vocabulary.errors import BackendUnavailable, UnknownName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.backend import GPUBackend

logger = logging.getLogger("exo.gpu.factory")

FAKE_VARIABLE = "EXO_GPU_FAKE"
"""Path of a script of fake devices; while it is set, they are all the devices there are."""

# In the order of preference: the first that has a device is the default.
_HOMES = {
    "cuda": ("exo.gpu.backends.cuda", "CudaBackend"),
    "rocm": ("exo.gpu.backends.rocm", "RocmBackend"),
    "level_zero": ("exo.gpu.backends.level_zero", "LevelZeroBackend"),
    "metal": ("exo.gpu.backends.metal", "MetalBackend"),
    "vulkan": ("exo.gpu.backends.vulkan", "VulkanGPUBackend"),
    "cpu": ("exo.gpu.backends.cpu", "CPUBackend"),
}

# Backends that exist on one operating system only, by Python's name of it.
_ONLY_ON = {"metal": "darwin"}

# Finding devices is given this long per backend; a driver that hangs is left behind.
FIND_SECONDS = 10.0


class GPUBackendFactory:
    """Makes backends by name."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Every backend, best first."""
        return tuple(_HOMES)

    @classmethod
    def make(cls, name: str, *, environ: Mapping[str, str] | None = None) -> GPUBackend:
        """A backend that has opened nothing yet.

        ``environ`` is the environment whose restrictions count, by default this process's own.

        Raises:
            UnknownName: for a name that is not among :meth:`names`.

        """
        if name not in _HOMES:
            raise UnknownName("backend", name, _HOMES)
        module, kind = _HOMES[name]
        make: Any = getattr(import_module(module), kind)
        return make() if name == "cpu" else make(environ=environ)

    @classmethod
    def make_all(cls, environ: Mapping[str, str] | None = None) -> dict[str, GPUBackend]:
        """All backends of this operating system by name, best first.

        Only the fake one where a script is named.
        """
        environment = os.environ if environ is None else environ
        script = environment.get(FAKE_VARIABLE)
        if script:
            from exo.gpu.backends.fake import FakeBackend

            return {"fake": FakeBackend(script, environ=environ)}
        here = [name for name in _HOMES if _ONLY_ON.get(name, sys.platform) == sys.platform]
        # The CPU first: the window over which its load is measured begins when it is made.
        made = {name: cls.make(name, environ=environ) for name in reversed(here)}
        return {name: made[name] for name in here}

    @classmethod
    async def create_backend(cls, name: str | None = None) -> GPUBackend:
        """One initialised backend: the named one, or the first that has a device.

        Raises:
            UnknownName: for a name that is not among :meth:`names`.
            BackendUnavailable: when the named one does not work here, or none has a device.

        """
        if name is not None:
            backend = cls.make(name)
            await backend.initialize()
            return backend
        for backend in cls.make_all().values():
            if await _opens(backend):
                return backend
            await backend.shutdown()
        raise BackendUnavailable("no backend has a device")


async def detect_available_backends() -> list[str]:
    """Names of the backends that have a device here, best first; the CPU is always last."""
    available: list[str] = []
    for name, backend in GPUBackendFactory.make_all().items():
        if await _opens(backend):
            available.append(name)
        await backend.shutdown()
    return available


async def _opens(backend: GPUBackend) -> bool:
    """True when the backend has a device within :data:`FIND_SECONDS`, whatever its driver does."""
    import anyio

    try:
        with anyio.move_on_after(FIND_SECONDS):
            await backend.initialize()
    except BackendUnavailable:
        return False
    except Exception:
        # The vendor-read border: a driver that breaks must not hide the next one.
        logger.warning("%s: finding devices failed", backend.name, exc_info=True)
        return False
    return bool(backend.list_devices())
