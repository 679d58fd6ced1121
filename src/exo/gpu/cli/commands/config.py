"""``exo-gpu config``: what is set, and who said so."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from exo.gpu.cli.context import print_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exo.gpu.configuration import Configuration
    from exo.gpu.vocabulary.device import GPUDevice


@click.group()
def command() -> None:
    """Show every setting, and where its value comes from.

    Settings come from /etc/exo-gpu/config.toml, then from the user's own file, then from the
    environment, then from options; the later one holds.
    """


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def show(as_json: bool) -> None:
    """Show every setting in force, those of each device included, and its source."""
    from exo.gpu.configuration import MACHINE_PATH, PATH_VARIABLE, load_configuration, user_path
    from exo.gpu.nodes.local import LocalNode

    configuration = load_configuration(os.environ)
    named = os.environ.get(PATH_VARIABLE)
    paths = [named] if named else [str(MACHINE_PATH), str(user_path(os.environ))]
    with LocalNode() as node:
        devices = node.inventory().devices
    rows = list(_rows(configuration, devices))
    if as_json:
        print_json(
            {
                "files": [{"path": path, "read": path in configuration.files} for path in paths],
                "settings": [
                    {"key": key, "value": value, "source": source} for key, value, source in rows
                ],
            }
        )
        return
    from exo.gpu.cli.render import paragraphs

    for path in paths:
        click.echo(f"{path}{'' if path in configuration.files else ' (not there)'}")
    click.echo()
    click.echo(
        paragraphs([(key, f"{_words(key, value)} ({source})") for key, value, source in rows])
    )


def _rows(
    configuration: Configuration, devices: Iterable[GPUDevice]
) -> Iterable[tuple[str, Any, str]]:
    """Key, value and source of every setting; of a device, those that differ from the usual."""
    from exo.gpu.configuration import DEFAULT, DEVICE_KEYS, KEYS

    for key in sorted({*KEYS, *configuration.values}):
        yield key, configuration.value(key), configuration.sources.get(key, DEFAULT)
    written = {field: name for name, (field, _) in DEVICE_KEYS.items()}
    for device in devices:
        for field, (value, source) in configuration.told(device).items():
            yield f"device.{device.device_id}.{written[field]}", value, source


def _words(key: str, value: Any) -> str:
    if value is not None and key.endswith(".reserve"):
        from exo.gpu.vocabulary.units import format_size

        return format_size(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        texts: tuple[str, ...] = value  # pyright: ignore[reportUnknownVariableType] - all texts
        return ", ".join(texts)
    return str(value)
