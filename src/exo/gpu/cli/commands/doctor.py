"""``exo-gpu doctor``: what was found, why the rest was not, and what to do about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import print_json
from exo.gpu.cli.main import complain

if TYPE_CHECKING:
    from exo.gpu.discovery import DiscoveryReport
    from exo.gpu.nodes.local import LocalNode

# All questions to a machine full of GPUs; a driver that hangs is left out.
NVML_SECONDS = 10.0


@click.command(epilog="Exit status: 0, also where backends are missing; 1 without even a host.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.option(
    "--bundle",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Also write a capture (tar.gz) to send with a question; names and serials are masked.",
)
def command(as_json: bool, bundle: Path | None) -> int:
    """Say per backend what was found, or why not and what to install.

    Also: where leases are kept and who shares them, which extras are installed, and which
    inherited variables restrict what can be seen.
    """
    from exo.gpu.nodes.local import LocalNode

    with LocalNode() as node:
        report = node.inventory()
        findings = _examine(node, report)
        if bundle is not None:
            count = write_bundle(bundle, node, findings)
            complain(f"{count} files are in {bundle}; look at them before you send it")
    if as_json:
        print_json(findings)
    else:
        from exo.gpu.cli.render import doctor_report

        click.echo(doctor_report(findings))
    return int(not any(device.device_class.value == "host" for device in report.devices))


def write_bundle(
    path: Path,
    node: LocalNode,
    findings: dict[str, Any],
    root: Path | None = None,
    nvml: str | None = None,
) -> int:
    """Write what was found, what devices told and the drivers' own answers, masked; how many files.

    ``root`` is where the DRM cards lie, ``nvml`` the path of NVIDIA's library, by default the
    system's.

    Raises:
        OSError: when it cannot be written.

    """
    import getpass
    import platform

    import msgspec

    from exo.gpu import bundle
    from exo.gpu.backends.capture import capture
    from exo.gpu.backends.drm import SYSFS

    trees = {f"sysfs/{name}": data for name, data in capture(root or SYSFS).items()}
    trees |= _nvml_answers(nvml)
    report = node.inventory()
    documents: dict[str, Any] = {
        "doctor.json": findings,
        "discovery.json": report.to_dict(),
        "samples.json": [
            {
                "device_id": state.device.device_id,
                "health": state.health.value,
                "failure": node.sample_failures.get(state.device.device_id),
                "sample": state.sample.to_dict() if state.sample else None,
            }
            for state in node.snapshot(leases=False).devices
        ],
        "versions.json": {"kernel": platform.release(), "packages": _packages()},
    }
    written = {name: msgspec.json.encode(value) for name, value in documents.items()}
    known = [*report.devices, *(missing.device for missing in report.missing)]
    known += [device for finding in report.findings for device in finding.devices]
    names = {platform.node(): "host", str(Path.home()): "~", getpass.getuser(): "user"}
    mask = bundle.Mask(
        {name: word for name, word in names.items() if name not in {"root", "/root"}},
        [*(device.hardware_id for device in known), *bundle.secrets(trees)],
    )
    return bundle.write(path, {**trees, **written}, mask)


def _nvml_answers(library: str | None) -> dict[str, bytes]:
    """What NVML tells, as a file; nothing without NVIDIA's driver, or where it hangs."""
    import anyio

    from exo.gpu.backend import call_with_deadline
    from exo.gpu.backends.cuda import CudaBackend
    from exo.gpu.vocabulary.errors import BackendUnavailable

    backend = CudaBackend(library=library)
    try:
        text = call_with_deadline(
            backend.capture, seconds=NVML_SECONDS, name="exo-gpu-capture-nvml"
        )
    except BackendUnavailable:
        return {}
    except TimeoutError as error:
        complain(f"NVML's answers were left out: {error}")
        return {}
    anyio.run(backend.shutdown)
    return {"nvml.txt": text.encode()}


def _packages() -> dict[str, str]:
    """The versions of the packages that exo-gpu may use, where they are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("nvidia-ml-py", "psutil", "wgpu", "vulkan", "cuda-bindings", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _examine(node: LocalNode, report: DiscoveryReport) -> dict[str, Any]:
    from exo.gpu import __version__

    cordons = _cordons(node)
    return {
        "exo_gpu": __version__,
        "python": sys.version.split()[0],
        "python_path": sys.executable,
        "backends": _backends(report),
        "software_drivers": [
            {"device_id": device.device_id, "name": device.name, "manifest": device.driver_manifest}
            for device in report.devices
            if device.device_class.value == "software"
        ],
        "missing": [missing.to_dict() for missing in report.missing],
        "lease_store": _lease_store(node, cordons["problem"]),
        "cordons": cordons,
        "registry": _registry(node),
        "history": _history(),
        "extras": _extras(),
        **_variables(node, report),
    }


def _backends(report: DiscoveryReport) -> list[dict[str, Any]]:
    from exo.gpu.backends.support import shown

    return [
        {
            "backend": finding.backend,
            "devices": {device.device_id: device.name for device in finding.devices},
            "reason": finding.reason,
            "hint": finding.hint,
            "seconds": finding.seconds,
            "support": shown(finding.backend),
        }
        for finding in report.findings
    ]


def _cordons(node: LocalNode) -> dict[str, Any]:
    """What keeps devices out of scheduling, or why that cannot be told."""
    from exo.gpu.vocabulary.errors import StoreError

    try:
        return {"in_force": node.cordons(), "problem": None}
    except StoreError as error:
        return {"in_force": (), "problem": str(error)}


def _lease_store(node: LocalNode, cordon_problem: str | None) -> dict[str, Any]:
    from exo.gpu.vocabulary.errors import StoreError

    place = node.store_place
    problem = None
    try:
        node.snapshot()
    except StoreError as error:
        problem = None if str(error) == cordon_problem else str(error)
    return {
        "path": str(place.path),
        "shared_by": place.shared_by,
        "reason": place.reason,
        "problem": problem,
    }


def _registry(node: LocalNode) -> dict[str, str] | None:
    """Where labels and slow drivers' answers are kept; None where nothing is."""
    place = node.registry_place
    return None if place is None else {"path": place[0], "problem": place[1]}


def _history() -> dict[str, Any]:
    """Where a watch keeps what devices tell, and how large that is; None before the first one."""
    from exo.gpu.telemetry.store.schema import history_path

    path = history_path(os.environ)
    try:
        size_bytes = path.stat().st_size
    except OSError:
        size_bytes = None
    return {"path": str(path), "size_bytes": size_bytes}


def _extras() -> list[dict[str, Any]] | None:
    """Each optional extra, and which of its distributions are missing; None where not known."""
    import re
    from importlib.metadata import PackageNotFoundError, requires, version

    try:
        requirements = requires("exo-gpu") or []
    except PackageNotFoundError:
        return None
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if match is None or match[1] == "exo-gpu":
            continue
        absent = missing.setdefault(match[2], [])
        try:
            version(match[1])
        except PackageNotFoundError:
            absent.append(match[1])
    return [
        {"extra": extra, "missing": absent, "install": f"pip install 'exo-gpu[{extra}]'"}
        for extra, absent in sorted(missing.items())
    ]


def _variables(node: LocalNode, report: DiscoveryReport) -> dict[str, Any]:
    """The inherited variables that restrict or pin, and what about them is ambiguous."""
    from exo.gpu.vocabulary.errors import BackendError

    inherited: dict[str, str] = {}
    warnings: list[str] = []
    for device in report.devices:
        try:
            changes = node.environment((device.device_id,))
        except BackendError as error:
            warnings.append(f"{device.device_id} cannot be pinned: {error}")
            continue
        for name, value in changes.items():
            if name not in os.environ:
                continue
            inherited[name] = os.environ[name]
            if value is None:
                warnings.append(
                    f"{name}={os.environ[name]} is also obeyed on {device.device_id}, where it "
                    "combines with the others; what exo-gpu starts there does not get it"
                )
    for name, value in inherited.items():
        if value and all(part.strip().isdigit() for part in value.split(",")):
            warnings.append(
                f"{name}={value} counts devices, and programs count in different orders; "
                "name devices by their hardware ids (exo-gpu select --format uuid)"
            )
    warnings += _not_enforced(report)
    return {"variables": inherited, "warnings": list(dict.fromkeys(warnings))}


def _not_enforced(report: DiscoveryReport) -> list[str]:
    """Cards that only our own workers tell apart: a driver is hidden as a whole or not at all."""
    sharing: dict[str, list[str]] = {}
    for device in report.devices:
        if device.backend == "vulkan" and device.driver_manifest:
            sharing.setdefault(device.driver_manifest, []).append(device.device_id)
    return [
        f"{' and '.join(ids)} have one Vulkan driver: between them exo-gpu's workers open their "
        "own only, which is not enforced for other programs"
        for ids in sharing.values()
        if len(ids) > 1
    ]
