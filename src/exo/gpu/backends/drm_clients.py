"""Programs that hold a DRM device open, as ``/proc/<pid>/fdinfo`` tells them to us.

Only processes of the same user are seen, or all with CAP_SYS_PTRACE; the form is the kernel's
``Documentation/gpu/drm-usage-stats.rst``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from exo.gpu.backend import DeviceProcess
from exo.gpu.vocabulary.errors import BackendError, ReadingMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exo.gpu.backends.counter_rates import CounterRates

PROC = Path("/proc")

_DEVICES = "/dev/dri/"
_NANOSECONDS = 10**9  # in a second
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Ways in which drivers count a client's memory, the nearest to what it really holds first.
_MEMORY = ("drm-resident-", "drm-memory-", "drm-total-")
# Regions of a card's own memory; of the machine's, where the graphics are in the processor.
_OWN_REGIONS = ("vram", "local")
_SHARED_REGIONS = (*_OWN_REGIONS, "gtt", "system", "stolen")


class Client(NamedTuple):
    """One client of a device. Engine times are nanoseconds of work per kind of engine.

    xe counts cycles instead: ``cycles`` holds those worked and those that passed.
    """

    pid: int
    client_id: str
    engines: dict[str, int]
    cycles: dict[str, tuple[int, int]]
    memory: dict[str, int]

    def memory_bytes(self, *, integrated: bool) -> int | None:
        """What it holds of the device's memory; None where the driver does not tell."""
        regions = _SHARED_REGIONS if integrated else _OWN_REGIONS
        found = [size for name, size in self.memory.items() if name.startswith(regions)]
        return sum(found) if found else None


def clients(pci_address: str | None, *, proc: Path = PROC) -> list[Client]:
    """The clients of one card that we may see, each once, by process id.

    A client that several processes inherited counts for the lowest process id.

    Raises:
        BackendError: when the processes cannot be listed at all.

    """
    try:
        pids = sorted(int(path.name) for path in proc.iterdir() if path.name.isdigit())
    except OSError as error:
        raise BackendError(f"{proc} cannot be listed: {error.strerror}") from error
    found: dict[str, Client] = {}
    for pid in pids:
        for text in _infos(proc / str(pid)):
            client = _parse(pid, text, pci_address)
            if client is not None:
                found.setdefault(client.client_id, client)
    return list(found.values())


def processes(
    pci_address: str | None, *, integrated: bool, proc: Path = PROC
) -> list[DeviceProcess]:
    """The processes that hold a card open, with all their clients' memory.

    Raises:
        BackendError: when the processes cannot be listed at all.

    """
    held: dict[int, int | None] = {}
    for client in clients(pci_address, proc=proc):
        size = client.memory_bytes(integrated=integrated)
        before = held.get(client.pid)
        held[client.pid] = before if size is None else (before or 0) + size
    return [DeviceProcess(pid=pid, memory_bytes=size) for pid, size in sorted(held.items())]


def busy_percent(found: list[Client], rates: CounterRates, place: str) -> float:
    """Share of time in which the busiest kind of engine worked for the clients we may see.

    A lower bound: other users' programs are not counted.

    Raises:
        ReadingMissing: when no client is seen, or none was seen before.

    """
    totals: dict[str, float] = {}
    reasons: list[str] = []
    told: set[tuple[str, ...]] = set()
    for client in found:
        for kind, share in _shares(client, rates, place, told, reasons):
            totals[kind] = totals.get(kind, 0.0) + share
    rates.forget((place, "engine"), but=told)
    if not totals:
        raise ReadingMissing(reasons[0] if reasons else "no program that we may see uses the card")
    return min(100.0, 100 * max(totals.values()))


def _shares(
    client: Client,
    rates: CounterRates,
    place: str,
    told: set[tuple[str, ...]],
    reasons: list[str],
) -> Iterator[tuple[str, float]]:
    """Kind of engine and the share of time it worked for one client, where two readings tell."""
    for kind, counters in _counters(client):
        speeds: list[float] = []
        for part, value in enumerate(counters):
            key = (place, "engine", client.client_id, kind, str(part))
            told.add(key)
            try:
                speeds.append(rates.rate(key, value).per_second)
            except ReadingMissing as reason:
                reasons.append(str(reason))
        if len(speeds) == len(counters):
            passed = speeds[1] if len(speeds) > 1 else _NANOSECONDS
            yield kind, speeds[0] / passed if passed else 0.0


def _counters(client: Client) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Kind of engine; its work, and behind it what passed meanwhile where that is no time."""
    for kind, nanoseconds in client.engines.items():
        yield kind, (nanoseconds,)
    yield from client.cycles.items()


def _infos(process: Path) -> Iterator[str]:
    """What is said of each open DRM file of a process; a process that ends is passed over."""
    try:
        files = list((process / "fd").iterdir())
    except OSError:
        return
    for file in files:
        try:
            if str(file.readlink()).startswith(_DEVICES):
                yield (process / "fdinfo" / file.name).read_text(errors="replace")
        except OSError:
            continue


def _parse(pid: int, text: str, pci_address: str | None) -> Client | None:
    pairs: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            pairs[name.strip()] = value.strip()
    if pairs.get("drm-pdev", "").lower() != pci_address or "drm-client-id" not in pairs:
        return None
    engines: dict[str, int] = {}
    cycles: dict[str, tuple[int, int]] = {}
    for name, value in pairs.items():
        number = _number(value)
        if number is None:
            continue
        if name.startswith("drm-engine-") and not name.startswith("drm-engine-capacity-"):
            kind = name.removeprefix("drm-engine-")
            # Several engines of a kind add their times up.
            engines[kind] = number // (_number(pairs.get(f"drm-engine-capacity-{kind}", "")) or 1)
        elif name.startswith("drm-cycles-"):
            kind = name.removeprefix("drm-cycles-")
            total = _number(pairs.get(f"drm-total-cycles-{kind}", ""))
            if total is not None:
                cycles[kind] = (number, total)
    return Client(pid, pairs["drm-client-id"], engines, cycles, _memory(pairs))


def _memory(pairs: dict[str, str]) -> dict[str, int]:
    """Bytes by region."""
    memory: dict[str, int] = {}
    for prefix in _MEMORY:
        for name, value in pairs.items():
            size = _number(value)
            if name.startswith(prefix) and size is not None:
                memory.setdefault(name.removeprefix(prefix), size)
    return {name: size for name, size in memory.items() if not name.startswith("cycles-")}


def _number(text: str) -> int | None:
    """``123 KiB``, ``123 ns`` or ``123`` as bytes, nanoseconds or a count."""
    number, _, unit = text.partition(" ")
    if not (number.isascii() and number.isdigit()):
        return None
    return int(number) * _UNITS.get(unit.strip(), 1)
