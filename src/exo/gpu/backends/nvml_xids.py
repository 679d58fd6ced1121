"""What an XID means and asks for, by NVIDIA's catalogue and by the driver's own word."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from exo.gpu.backends import nvml_library
from exo.gpu.vocabulary.errors import BackendError
from exo.gpu.vocabulary.health import DeviceFault, FaultAction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from exo.gpu.backends.nvml_events import Xid, XidWatch

logger = logging.getLogger("exo.gpu.backends.cuda")

# docs.nvidia.com/deploy/xid-errors, the catalogue's immediate action for Ampere and later, read in
# October 2025; the words are ours. RESTART_APP and IGNORE leave the GPU usable. Of its workflows,
# 48 (an ECC error that was not corrected) and 74 (NVLink) end in a reset, 144 to 150 (NVLink of the
# fifth generation) in a look at more than the number, and 45 follows another XID.
_IGNORED = {
    14: "a test of the driver",
    **dict.fromkeys((37, 38), "an error of the driver's firmware"),
    43: "the program's channel stopped",
    44: "a fault while switching programs",
    45: "a program ended because of another error",
    63: "a memory row is to be replaced",
    **dict.fromkeys((66, 67), "an access that the driver should not make"),
    92: "many corrected memory errors",
    93: "the information ROM was written very often",
    **dict.fromkeys((106, 107), "a test message"),
    108: "an NVLink address could not be translated",
    121: "an error between the chips, which was corrected",
    137: "an NVLink access without the right to it",
    141: "an error in CUDA's fast path",
    **dict.fromkeys((152, 153), "an error of the inference engine"),
    157: "a part could not be retired",
    **dict.fromkeys((160, 161), "a channel was retired"),
    **dict.fromkeys((171, 172), "where an uncorrected memory error was"),
}
_APPLICATION = {
    8: "the program's channel stopped",
    **dict.fromkeys((11, 25, 32), "the program sent an invalid command"),
    13: "the program made the graphics engine fail",
    31: "the program touched memory that is not its own",
    **dict.fromkeys(
        (39, 40, 41, 70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "a copy engine failed"
    ),
    60: "the video processor failed",
    **dict.fromkeys((68, 83, 84, 88, 89, 96, 97, 98), "a video decoder failed"),
    69: "the program asked the graphics engine for what it cannot do",
    80: "the program's commands arrived damaged",
    **dict.fromkeys((82, *range(99, 106)), "the JPEG engine failed"),
    **dict.fromkeys((86, 139), "the optical flow engine failed"),
    94: "a memory error that hit one program only",
}
_RESET = {
    46: "the GPU stopped working",
    48: "a memory error that could not be corrected",
    62: "the internal micro-controller halted",
    64: "a memory row could not be replaced",
    74: "an NVLink error",
    95: "a memory error that may have hit every program",
    109: "switching programs took too long",
    110: "a security fault",
    119: "the GPU's system processor did not answer",
    120: "the GPU's system processor failed",
    136: "an NVLink could not be brought up",
    140: "a memory error that could not be recovered",
    143: "the GPU could not be initialised",
    155: "an NVLink went down",
    156: "a part of the GPU is to be retired",
    158: "the GPU did not answer any more",
}
_CHECK = {
    54: "auxiliary power is not connected",
    78: "a virtual GPU could not start",
    142: "a video encoder failed",
    **dict.fromkeys(range(144, 151), "an NVLink error"),
    154: "what the GPU needs has changed",
    159: "an error on the link to the processor",
}
_RESTART = {79: "the GPU has fallen off the bus", 151: "the keys of the link cannot be renewed"}

CATALOGUE: Mapping[int, tuple[str, FaultAction]] = {
    code: (what, action)
    for action, group in {
        FaultAction.IGNORE: _IGNORED,
        FaultAction.RESTART_APPLICATION: _APPLICATION,
        FaultAction.RESET_DEVICE: _RESET,
        FaultAction.CHECK: _CHECK,
        FaultAction.RESTART_MACHINE: _RESTART,
    }.items()
    for code, what in group.items()
}
"""XID -> what it is, and the action that it asks for."""

UNLISTED = ("an error that the catalogue names no action for", FaultAction.CHECK)

ROW_REMAPPING, RECOVERY_CHANGED = 63, 154

# nvml.h: NVML_FI_DEV_GET_GPU_RECOVERY_ACTION and nvmlDeviceGpuRecoveryAction_t.
_RECOVERY_ACTION = 230
_RECOVERIES = {
    1: FaultAction.RESET_DEVICE,
    2: FaultAction.RESTART_MACHINE,
    3: FaultAction.CHECK,  # drain peer-to-peer traffic
    4: FaultAction.RESET_DEVICE,  # drain it, then reset
    5: FaultAction.CHECK,  # recover the IMEX domain
    6: FaultAction.RESET_DEVICE,  # of its bus
    7: FaultAction.RESTART_MACHINE,
}
_RECOVERIES_OF_ALL = (FaultAction.RESET_DEVICE, FaultAction.RESTART_MACHINE)


def judge(nvml: Any, handle: Any, xid: int) -> tuple[str, FaultAction]:
    """What happened, in words, and what has to be done.

    The driver's own recovery action is better evidence than a list of codes: where the driver
    tells it, it decides. A replaced memory row asks for a reset only where replacing failed.

    Raises:
        pynvml.NVMLError: for what concerns the whole GPU or library.

    """
    what, action = CATALOGUE.get(xid, UNLISTED)
    if xid == ROW_REMAPPING:
        what, action = _remapping(nvml, handle, what)
    told = recovery_action(nvml, handle)
    if told is FaultAction.IGNORE:
        if xid == RECOVERY_CHANGED:
            action = told
        elif action in _RECOVERIES_OF_ALL:
            # Nothing is left to do: the program that met the error has ended.
            action = FaultAction.RESTART_APPLICATION
    elif told is not None:
        action = told
    return f"XID {xid}: {what}", action


def recovery_action(nvml: Any, handle: Any) -> FaultAction | None:
    """What the driver itself says the GPU needs; None where it does not tell.

    Raises:
        pynvml.NVMLError: for what concerns the whole GPU or library.

    """
    try:
        answer = nvml.nvmlDeviceGetFieldValues(handle, [(_RECOVERY_ACTION, 0)])[0]
    except nvml.NVMLError as error:
        if error.value in nvml_library.WHOLE:
            raise
        logger.debug("no recovery action: %s", error)
        return None
    if answer.nvmlReturn:
        return None
    number = int(answer.value.uiVal)
    if number == 0:
        return FaultAction.IGNORE
    return _RECOVERIES.get(number, FaultAction.CHECK)


def _remapping(nvml: Any, handle: Any, what: str) -> tuple[str, FaultAction]:
    """Whether rows wait for a reset to be replaced, or could not be (Ampere and later)."""
    try:
        _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(handle)
    except nvml.NVMLError as error:
        logger.debug("no remapped rows: %s", error)
        return what, FaultAction.IGNORE
    if failed:
        return "a memory row could not be replaced", FaultAction.RESET_DEVICE
    if pending:
        return "a memory row is replaced at the next reset", FaultAction.CHECK
    return "a memory row was replaced", FaultAction.IGNORE


class XidFaults:
    """The XIDs of a watch as faults of devices: a :class:`~exo.gpu.backend.FaultWatch`.

    ``members`` gives the ids of the devices under an XID's label: a GPU's own, or its MIG
    instances'; ``judged`` what an XID means there.
    """

    def __init__(
        self,
        watch: XidWatch,
        *,
        members: Callable[[str], Iterable[str]],
        judged: Callable[[Xid], tuple[str, FaultAction]],
    ) -> None:
        self._watch = watch
        self._members = members
        self._judged = judged

    @property
    def refused(self) -> Mapping[str, str]:
        """Device id -> why the driver reports no fault of it."""
        return self._watch.refused

    def faults(self, *, timeout_seconds: float) -> Iterator[DeviceFault]:
        """What happened so far and within the time, as it comes.

        Raises:
            BackendError: when the driver stopped reporting; what came before is given first.

        """
        for event in self._watch.xids(timeout_seconds=timeout_seconds):
            at = time.time()
            what, action = self._judge(event)
            for device_id in self._members(event.device_id):
                yield DeviceFault(
                    device_id=device_id, code=event.xid, what=what, action=action, at=at
                )

    def close(self) -> None:
        """Stop watching; harmless twice."""
        self._watch.close()

    def _judge(self, event: Xid) -> tuple[str, FaultAction]:
        """By the driver's own word where it still answers, else by the catalogue alone."""
        try:
            return self._judged(event)
        except BackendError as error:
            logger.debug("%s does not tell what it needs: %s", event.device_id, error)
        what, action = CATALOGUE.get(event.xid, UNLISTED)
        return f"XID {event.xid}: {what}", action
