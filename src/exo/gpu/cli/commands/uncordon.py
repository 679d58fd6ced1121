"""``exo-gpu uncordon``: take a device back into scheduling."""

from __future__ import annotations

import click

from exo.gpu.cli.context import print_json


@click.command(
    epilog="Exit status: 0, also where it was not cordoned; 1 when that cannot be kept; "
    "69 no device here is called that; 2 usage."
)
@click.argument("name", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with what was lifted.")
def command(name: str, as_json: bool) -> None:
    """Take a device back into scheduling.

    Whoever kept it out. ID is its id, alias or hardware id, also of one that is here no more.
    """
    from exo.gpu.coordination.cordons import uncordon

    lifted = uncordon(name)
    if as_json:
        print_json({"device": name, "lifted": None if lifted is None else lifted.to_dict()})
    elif lifted is None:
        click.echo(f"{name} is not cordoned")
    else:
        from exo.gpu.cli.render import cordon_words

        click.echo(f"{lifted.device_id} is back; it was {cordon_words(lifted)}")
