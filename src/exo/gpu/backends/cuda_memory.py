"""Memory of NVIDIA GPUs through CUDA's driver API; the only importer of cuda-bindings."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any, NamedTuple, cast

from exo.gpu.vocabulary.errors import (
    AbilityMissing,
    BackendError,
    BackendUnavailable,
    DeviceLost,
    InvalidHandle,
    OutOfDeviceMemory,
)

# cuda.h, CUresult: what an error of one call means for us.
_KINDS: dict[int, type[BackendError]] = {
    1: InvalidHandle,  # CUDA_ERROR_INVALID_VALUE: an address that is no memory of ours
    2: OutOfDeviceMemory,  # CUDA_ERROR_OUT_OF_MEMORY
    214: DeviceLost,  # CUDA_ERROR_ECC_UNCORRECTABLE
    220: DeviceLost,  # CUDA_ERROR_NVLINK_UNCORRECTABLE
    400: InvalidHandle,  # CUDA_ERROR_INVALID_HANDLE
    999: DeviceLost,  # CUDA_ERROR_UNKNOWN: what a GPU that fell off the bus gives
}
# cuDeviceGetPCIBusId: "0000:01:00.0" and its end.
_ADDRESS_LENGTH = 32


class Gpu(NamedTuple):
    """A GPU as CUDA numbers it, and its primary context, which every use shares."""

    device: Any
    context: Any


class CudaMemory:
    """CUDA in this process: GPUs by their UUID, never by an index of NVML's.

    ``library`` is the path of libcuda.so.1, None for the one that the loader finds. All calls
    block. CUDA is started by the first call, and a context, which takes some hundred MiB of a
    GPU, is made for a GPU when its memory is first used.
    """

    def __init__(self, library: str | None = None) -> None:
        self._library = library
        self._lock = threading.RLock()
        self._driver: Any = None
        self._opened_by: int | None = None
        self._places: dict[str, Any] = {}
        self._gpus: dict[str, Gpu] = {}
        self._joined: set[tuple[str, str]] = set()

    def allocate(self, hardware_id: str, size_bytes: int) -> int:
        """The address of new memory.

        Raises:
            OutOfDeviceMemory: when the GPU has no more.

        """
        self._enter(hardware_id)
        return int(self._call("cuMemAlloc", max(1, size_bytes)))

    def free(self, hardware_id: str, address: int) -> None:
        """Give memory back.

        Raises:
            InvalidHandle: for an address that CUDA does not know.

        """
        self._enter(hardware_id)
        self._call("cuMemFree", address)

    def write(self, hardware_id: str, address: int, data: bytes) -> None:
        """Copy from the host."""
        if data:
            self._enter(hardware_id)
            self._call("cuMemcpyHtoD", address, data, len(data))

    def read(self, hardware_id: str, address: int, size_bytes: int) -> bytes:
        """Copy to the host."""
        data = bytearray(size_bytes)
        if data:
            self._enter(hardware_id)
            self._call("cuMemcpyDtoH", data, address, size_bytes)
        return bytes(data)

    def copy(self, source: tuple[str, int], target: tuple[str, int], size_bytes: int) -> None:
        """Copy from one address to another, on one GPU or across two; done when it returns."""
        if not size_bytes:
            return
        (from_id, from_address), (to_id, to_address) = source, target
        origin = self._gpu(from_id)
        gpu = self._enter(to_id)
        if from_id == to_id:
            self._call("cuMemcpyDtoD", to_address, from_address, size_bytes)
        else:
            self._join(from_id, to_id)
            self._call(
                "cuMemcpyPeer", to_address, gpu.context, from_address, origin.context, size_bytes
            )
        self._call("cuCtxSynchronize")

    def synchronize(self, hardware_id: str) -> None:
        """Wait until everything that this process gave the GPU is done."""
        self._enter(hardware_id)
        self._call("cuCtxSynchronize")

    def room(self, hardware_id: str) -> tuple[int, int]:
        """Total and used bytes, whoever uses them."""
        self._enter(hardware_id)
        free, total = self._call("cuMemGetInfo")
        return total, total - free

    def peer_access(self, source_id: str, target_id: str) -> bool:
        """Whether ``source_id`` can read and write the memory of ``target_id`` directly."""
        return bool(
            self._call("cuDeviceCanAccessPeer", self._place(source_id), self._place(target_id))
        )

    def close(self) -> None:
        """Let go of the contexts; harmless twice."""
        if self._forked():  # the contexts are the parent's, and so may the lock be
            return
        with self._lock:
            gpus, self._gpus, self._joined = self._gpus, {}, set()
            for gpu in gpus.values():
                self._driver.cuDevicePrimaryCtxRelease(gpu.device)
            self._opened_by, self._places = None, {}

    def _enter(self, hardware_id: str) -> Gpu:
        """Make a GPU's context that of this thread."""
        gpu = self._gpu(hardware_id)
        self._call("cuCtxSetCurrent", gpu.context)
        return gpu

    def _gpu(self, hardware_id: str) -> Gpu:
        self._open()
        with self._lock:
            if hardware_id not in self._gpus:
                device = self._place(hardware_id)
                context = self._call("cuDevicePrimaryCtxRetain", device)
                self._gpus[hardware_id] = Gpu(device, context)
            return self._gpus[hardware_id]

    def _join(self, from_id: str, to_id: str) -> None:
        """Open the direct way between two GPUs, where there is one; else CUDA goes by the host."""
        with self._lock:
            if (from_id, to_id) in self._joined:
                return
            self._joined.add((from_id, to_id))
            if self.peer_access(to_id, from_id):
                self._driver.cuCtxEnablePeerAccess(self._gpus[from_id].context, 0)

    def _place(self, hardware_id: str) -> Any:
        """CUDA's own device of a UUID or PCI address.

        Raises:
            BackendError: when CUDA does not show it to this process.

        """
        self._open()
        found = self._places.get(_digits(hardware_id))
        if found is None:
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            raise BackendError(
                f"CUDA shows this process no device {hardware_id} (CUDA_VISIBLE_DEVICES={shown!r})"
            )
        return found

    def _open(self) -> None:
        if self._opened_by == os.getpid():
            return
        if self._forked():
            raise BackendError("CUDA does not survive a fork: use memory in a process of its own")
        with self._lock:
            if self._opened_by == os.getpid():
                return
            self._driver = _driver(self._library)
            try:
                self._call("cuInit", 0)
            except BackendError as error:
                raise BackendUnavailable(f"CUDA does not start: {error}") from error
            except RuntimeError as error:  # the binding found no libcuda.so.1, or half of one
                raise BackendUnavailable(
                    f"CUDA does not start: {error}", "install NVIDIA's driver"
                ) from error
            self._places = dict(self._listed())
            self._opened_by = os.getpid()

    def _forked(self) -> bool:
        return self._opened_by not in {None, os.getpid()}

    def _listed(self) -> list[tuple[str, Any]]:
        """CUDA's devices by the digits of their UUID and by their PCI address."""
        # The second form tells a MIG instance's own UUID; version 13 of the binding has only it.
        second = hasattr(self._driver, "cuDeviceGetUuid_v2")
        ask = "cuDeviceGetUuid_v2" if second else "cuDeviceGetUuid"
        found: list[tuple[str, Any]] = []
        for ordinal in range(self._call("cuDeviceGetCount")):
            device = self._call("cuDeviceGet", ordinal)
            text = self._call("cuDeviceGetPCIBusId", _ADDRESS_LENGTH, device)
            address = bytes(text).split(b"\0")[0].decode().lower()
            digits = bytes(self._call(ask, device).bytes).hex()
            found += [(address, device), (digits, device)]
        return found

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call CUDA and return what it gives.

        Raises:
            BackendError: of the kind that the error means, with CUDA's name of it.

        """
        code, *values = getattr(self._driver, name)(*arguments)
        if int(code):
            kind = _KINDS.get(int(code), BackendError)
            raise kind(f"{name}: {_words(self._driver, code)}")
        return values[0] if len(values) == 1 else values


def _digits(hardware_id: str) -> str:
    """The form in which a device is looked up: a UUID's digits, or a PCI address."""
    kind, _, uuid = hardware_id.lower().partition("-")
    return uuid.replace("-", "") if kind in {"gpu", "mig"} else hardware_id.lower()


def _words(driver: Any, code: Any) -> str:
    failed, name = driver.cuGetErrorName(code)
    return f"error {int(code)}" if int(failed) else f"{name.decode()} ({int(code)})"


def _driver(library: str | None) -> Any:
    """The binding; a library at a path is loaded first, and the binding then finds that one.

    Raises:
        AbilityMissing: without cuda-bindings.
        BackendUnavailable: when the library cannot be loaded.

    """
    try:
        # The binding is compiled and has no stubs.
        from cuda.bindings import driver  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]

        found = cast("Any", driver)
    except ImportError as error:
        raise AbilityMissing(
            "memory of NVIDIA GPUs needs cuda-bindings: pip install 'exo-gpu[cuda]'"
        ) from error
    if library is not None:
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise BackendUnavailable(f"the CUDA driver library {library}: {error}") from error
    return found
