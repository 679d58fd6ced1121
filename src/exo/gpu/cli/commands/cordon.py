"""``exo-gpu cordon``: keep a device out of scheduling."""

from __future__ import annotations

import click

from exo.gpu.cli.context import duration, print_json


@click.command(
    epilog="Exit status: 0; 1 when it cannot be kept; 69 no device here is called that; 2 usage."
)
@click.argument("name", metavar="ID")
@click.option("--why", required=True, metavar="TEXT", help="The reason, for people to read.")
@click.option(
    "--for",
    "for_seconds",
    callback=duration,
    metavar="TIME",
    help="How long, such as 90s, 30m or 2h; without it, until 'exo-gpu uncordon'.",
)
@click.option("--json", "as_json", is_flag=True, help="The cordon as one JSON object.")
def command(name: str, why: str, for_seconds: float | None, as_json: bool) -> None:
    """Keep a device out of scheduling.

    It holds for all users of this machine. What runs there goes on, nothing new begins; 'exo-gpu
    drain' also waits for what runs. ID is the device's id, alias or hardware id.
    """
    from exo.gpu.coordination.cordons import cordon

    kept = cordon(name, why=why, for_seconds=for_seconds)
    if as_json:
        print_json(kept.to_dict())
        return
    from exo.gpu.cli.render import cordon_words

    click.echo(f"{kept.device_id} is {cordon_words(kept)}")
