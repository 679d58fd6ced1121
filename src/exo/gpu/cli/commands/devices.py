"""``exo-gpu devices``: every device, and what it is doing now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import print_json
from exo.gpu.cli.main import complain
from exo.gpu.vocabulary.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exo.gpu.discovery import DiscoveryReport
    from exo.gpu.nodes.local import LocalNode
    from exo.gpu.vocabulary.snapshot import DeviceState


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def command(as_json: bool) -> None:
    """List every device and what it is doing now.

    What a device does not tell is "-" here and null in JSON, never 0. The second line of a
    device names it, and says how its backend was last shown to work: on hardware, on captured
    output, on a fake driver, or never.
    """
    from exo.gpu.backends.support import shown
    from exo.gpu.nodes.local import LocalNode

    with LocalNode() as node:
        report = node.inventory()
        states = _states(node)
        failures = node.sample_failures
    support = {finding.backend: shown(finding.backend) for finding in report.findings}
    if as_json:
        print_json(
            {
                "devices": [_fields(state, failures, support) for state in states],
                "findings": [finding.to_dict() for finding in report.findings],
            }
        )
        return
    from exo.gpu.cli.render import devices_table

    if states:
        click.echo(devices_table(states, failures=failures, support=support))
    else:
        click.echo("No device was found.")
        for finding in report.findings:
            click.echo(f"{finding.backend}: {finding.reason or 'it lists no device'}")
        return
    absent = _absent(report)
    if absent:
        click.echo(f"Not here: {', '.join(absent)} (exo-gpu doctor says why).")


def _states(node: LocalNode) -> tuple[DeviceState, ...]:
    """The devices with their leases, or without where the store cannot be used."""
    try:
        return node.snapshot().devices
    except StoreError as error:
        complain(f"leases are not shown: {error}")
        return node.snapshot(leases=False).devices


def _fields(
    state: DeviceState, failures: Mapping[str, str], support: Mapping[str, Any]
) -> dict[str, Any]:
    device = state.device
    return {
        **device.to_dict(),
        "health": state.health.value,
        "health_reason": state.health_reason,
        "sample": state.sample.to_dict() if state.sample else None,
        "sample_age_seconds": state.sample_age_seconds,
        "sample_failure": failures.get(device.device_id),
        "leases": [lease.to_dict() for lease in state.leases],
        "support": support.get(device.backend),
    }


def _absent(report: DiscoveryReport) -> list[str]:
    return [finding.backend for finding in report.findings if not finding.devices]
