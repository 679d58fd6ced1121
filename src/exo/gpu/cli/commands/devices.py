"""``exo-gpu devices``: every device, and what it is doing now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
import msgspec

from exo.gpu.cli.context import print_json, snapshot_of
from exo.gpu.cli.machines import cluster_option, open_node
from exo.gpu.cli.main import complain
from exo.gpu.telemetry.probe_cache import PairCache, pairs_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from exo.gpu.discovery import DiscoveryReport
    from exo.gpu.nodes.local import LocalNode
    from exo.gpu.vocabulary.links import Link
    from exo.gpu.vocabulary.snapshot import DeviceState

# A list of what answers is due within two seconds, start and sampling included; who is to decide
# (run, map, select) waits longer, and so does --refresh.
LISTING_SECONDS = 1.5


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.option(
    "--refresh",
    is_flag=True,
    help="Ask all drivers, also where what they said before would do, and wait for slow ones.",
)
@cluster_option
@click.option("--forget", metavar="ID", help="Drop a missing device from the registry.")
def command(as_json: bool, refresh: bool, cluster: bool, forget: str | None) -> None:
    """List every device and what it is doing now.

    What a device does not tell is "-" here and null in JSON, never 0. The second line of a
    device names it, and says how its backend was last shown to work: on hardware, on captured
    output, on a fake driver, or never.
    """
    from exo.gpu.backends.support import shown

    if cluster and (forget is not None or refresh):
        raise click.UsageError("--forget and --refresh are for the machine itself, not --cluster")
    with open_node(cluster=cluster) as node:
        patience = None if refresh else LISTING_SECONDS
        report = node.inventory(refresh=refresh, links=as_json, deadline_seconds=patience)
        if forget is not None:
            report = _without(node, forget)
        states = snapshot_of(node).devices
        failures = node.sample_failures
    backends = {one.backend for one in (*report.findings, *report.devices)}
    support = {name: shown(name) for name in backends}
    if as_json:
        print_json(
            {
                "devices": [_fields(state, failures, support) for state in states],
                "findings": [finding.to_dict() for finding in report.findings],
                "missing": [missing.to_dict() for missing in report.missing],
                "links": [link.to_dict() for link in _measured(report.links, states)],
            }
        )
        return
    from exo.gpu.cli.render import devices_table, missing_lines

    if states:
        click.echo(devices_table(states, failures=failures, support=support))
    else:
        click.echo("No device was found.")
        for finding in report.findings:
            click.echo(f"{finding.backend}: {finding.reason or 'it lists no device'}")
    if report.missing:
        click.echo(missing_lines(report.missing))
    absent = _absent(report) if states else []
    if absent:
        click.echo(f"Not here: {', '.join(absent)} (exo-gpu doctor says why).")


def _without(node: LocalNode, device_id: str) -> DiscoveryReport:
    """What is left once this machine has forgotten a device."""
    complain(f"forgotten: {', '.join(node.forget(device_id))}")
    return node.inventory()


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
        "cordon": None if state.cordon is None else state.cordon.to_dict(),
        "support": support.get(device.backend),
    }


def _measured(links: Iterable[Link], states: Iterable[DeviceState]) -> list[Link]:
    """The links, with the bandwidth that a probe of the pair found under the present drivers."""
    cache = PairCache(pairs_path(os.environ))
    cache.refresh()
    devices = {state.device.device_id: state.device for state in states}
    measured: list[Link] = []
    for link in links:
        ends = devices.get(link.source), devices.get(link.target)
        found = cache.find(ends[0], ends[1]) if ends[0] and ends[1] else None
        known = found.gbps.median if found and found.gbps else link.bandwidth_gbps
        measured.append(msgspec.structs.replace(link, bandwidth_gbps=known))
    return measured


def _absent(report: DiscoveryReport) -> list[str]:
    return [finding.backend for finding in report.findings if not finding.devices]
