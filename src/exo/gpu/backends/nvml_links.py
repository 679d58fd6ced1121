"""How NVIDIA GPUs of this machine are joined: NVLink, PCIe switches, bridges, NUMA nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exo.gpu.backends import nvml_library
from exo.gpu.vocabulary.links import Link, LinkKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from exo.gpu.backends.nvml_readings import Target
    from exo.gpu.backends.nvml_session import NvmlSession

# nvml.h: nvmlGpuTopologyLevel_t.
_LEVELS = {
    0: LinkKind.BOARD,
    10: LinkKind.SWITCH,
    20: LinkKind.SWITCH,
    30: LinkKind.HOST_BRIDGE,
    40: LinkKind.NUMA_NODE,
    50: LinkKind.SYSTEM,
}
# nvml.h: nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t. pynvml's NVML_P2P_CAPS_INDEX_READ is a
# tuple by a slip of the pen, so the numbers stand here.
_READ, _WRITE = 0, 1
_P2P_OK, _P2P_UNKNOWN = 0, 6

_SWITCH = "switch"


def links(session: NvmlSession, targets: Sequence[Target]) -> list[Link]:
    """What NVML tells of each ordered pair of whole GPUs; of MIG instances nothing holds.

    A pair of which it tells nothing, as beside a lost GPU, is left out.
    """
    ends: dict[str, set[str]] = {}
    whole: list[Target] = []
    for target in targets:
        if target.parent is None:
            try:
                ends[target.device.device_id] = _nvlink_ends(session, target.handle)
            except session.nvml.NVMLError as error:
                if error.value in nvml_library.REOPEN:
                    raise
                continue
            whole.append(target)
    pairs = [(source, target) for source in whole for target in whole if source is not target]
    found = [_link(session, source, target, ends) for source, target in pairs]
    return [link for link in found if link is not None]


def _link(
    session: NvmlSession, source: Target, target: Target, ends: Mapping[str, set[str]]
) -> Link | None:
    try:
        kind = _ancestor(session, source.handle, target.handle)
        peer = _peer_access(session, source.handle, target.handle)
    except session.nvml.NVMLError as error:
        if error.value in nvml_library.REOPEN:
            raise
        return None
    if _joined(source, target, ends):
        kind = LinkKind.NVLINK
    if kind is None and peer is None:
        return None
    names = (source.device.device_id, target.device.device_id)
    return Link(source=names[0], target=names[1], kind=kind, peer_access=peer)


def _joined(source: Target, target: Target, ends: Mapping[str, set[str]]) -> bool:
    """True when an NVLink leads from one GPU to the other, or both to the NVLink switches."""
    mine, its = ends[source.device.device_id], ends[target.device.device_id]
    return target.device.pci_address in mine or (_SWITCH in mine and _SWITCH in its)


def _nvlink_ends(session: NvmlSession, handle: Any) -> set[str]:
    """PCI addresses at the other ends of a GPU's active NVLinks, or "switch"."""
    return {end for end in _ends(session, handle) if end}


def _ends(session: NvmlSession, handle: Any) -> Iterator[str | None]:
    nvml, fact = session.nvml, session.fact
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
        except nvml.NVMLError as error:
            if error.value in nvml_library.WHOLE:
                raise
            if error.value == nvml_library.NOT_SUPPORTED:
                continue  # this link is not wired
            return  # no such number, or an old driver
        kind = fact(lambda link=link: nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link))
        if kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            yield _SWITCH
            continue
        yield fact(
            lambda link=link: nvml_library.pci_address(
                nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link)
            )
        )


def _ancestor(session: NvmlSession, source: Any, target: Any) -> LinkKind | None:
    level = session.fact(lambda: session.nvml.nvmlDeviceGetTopologyCommonAncestor(source, target))
    return _LEVELS.get(level)


def _peer_access(session: NvmlSession, source: Any, target: Any) -> bool | None:
    """True when reading and writing both work, False when one does not, None for unknown."""
    answers = [
        session.fact(lambda what=what: session.nvml.nvmlDeviceGetP2PStatus(source, target, what))
        for what in (_READ, _WRITE)
    ]
    if any(answer is None or answer == _P2P_UNKNOWN for answer in answers):
        return None
    return all(answer == _P2P_OK for answer in answers)
