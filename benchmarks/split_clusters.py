"""The clusters of Helix: their nodes and links, and the tables of tokens a second by layers."""

from __future__ import annotations

import ast
import configparser
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exo.gpu.vocabulary.split_network import SINK, SOURCE, NetworkLink, NetworkNode, SplitNetwork

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC = "https://github.com/Thesys-lab/Helix-ASPLOS25"
TABLES = "layer_throughput.json"
# Helix counts links in bytes: its "mbps" are 10**6 bytes a second.
_UNITS = {
    "kbps": 1e3,
    "mbps": 1e6,
    "gbps": 1e9,
    "Sec": 1.0,
    "MilliSec": 1e-3,
    "MicroSec": 1e-6,
}


@dataclass(frozen=True)
class Case:
    """A network, by the name of its table and of its cluster's file."""

    name: str
    file: str
    network: SplitNetwork


def read_cases(folder: Path) -> list[Case]:
    """Every case of a folder: a table names the file of its cluster."""
    tables = folder / TABLES
    if not tables.is_file():
        sys.exit(f"there is no {TABLES} in {folder}; the clusters are at {PUBLIC}")
    return [
        Case(name, table["cluster_file"], read_cluster(folder / table["cluster_file"], table))
        for name, table in json.loads(tables.read_text(encoding="utf-8")).items()
    ]


def read_cluster(path: Path, table: dict) -> SplitNetwork:
    """One cluster with the layers, bytes and tables of a model."""
    file = configparser.ConfigParser()
    file.optionxform = str
    if not file.read(path, encoding="utf-8"):
        sys.exit(f"{path} cannot be read; the clusters are at {PUBLIC}")
    rates = table["layer_count_to_tokens_per_s"]
    nodes, links = [], []
    for section in file.sections():
        kind, _, rest = section.partition("-")
        if kind == "ComputeNode":
            by_count = rates[file[section]["type"]]
            counts = tuple(float(by_count[str(k)]) for k in range(1, len(by_count) + 1))
            nodes.append(
                NetworkNode(name=rest, kind=file[section]["type"], tokens_per_second=counts)
            )
    joined = _joined(file)
    for section in file.sections():
        kind, _, rest = section.partition("-")
        if kind == "Link":
            source, _, target = rest.partition("-")
            # A link between two nodes is written once, and leads both ways.
            both = {(source, target), (target, source)} if target != SINK else {(source, target)}
            links += [
                NetworkLink(
                    source=one,
                    target=other,
                    bytes_per_second=_figure(file[section]["bandwidth"]),
                    latency_seconds=_figure(file[section]["latency"]),
                )
                for one, other in sorted(both & joined)
                if f"Link-{one}-{other}" == section or not file.has_section(f"Link-{one}-{other}")
            ]
    return SplitNetwork(
        nodes=tuple(nodes),
        links=tuple(links),
        layer_count=table["num_layers"],
        activation_bytes_per_token=table["activation_bytes_per_token"],
        token_bytes=table["token_bytes"],
    )


def _joined(file: configparser.ConfigParser) -> set[tuple[str, str]]:
    """The directed pairs that the cluster declares as connected."""
    pairs: set[tuple[str, str]] = set()
    for section in file.sections():
        if section == "SourceNode":
            names = ast.literal_eval(file[section]["connected_nodes"])
            pairs |= {(SOURCE, str(name)) for name in names}
        elif section == "SinkNode":
            names = ast.literal_eval(file[section]["connected_nodes"])
            pairs |= {(str(name), SINK) for name in names}
        elif section.startswith("ComputeNode-"):
            own = section.partition("-")[2]
            names = map(str, ast.literal_eval(file[section]["connected_nodes"]))
            pairs |= {(own, name) for name in names if name not in {SOURCE, SINK}}
    return pairs


def _figure(text: str) -> float:
    """``1000 * mbps`` in base units."""
    number, _, unit = text.partition("*")
    return float(number) * _UNITS[unit.strip()]
