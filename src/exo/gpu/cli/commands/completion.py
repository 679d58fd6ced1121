"""``exo-gpu completion``: the script that teaches a shell the commands and options."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for bash, zsh or fish.

    \b
    bash: echo 'eval "$(exo-gpu completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(exo-gpu completion zsh)"' >> ~/.zshrc
    fish: exo-gpu completion fish > ~/.config/fish/completions/exo-gpu.fish
    """  # noqa: D301 - \b is click's mark of lines that stay as they are
    from click.shell_completion import BashComplete, FishComplete, ZshComplete

    from exo.gpu.cli.main import root

    shells = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
    click.echo(shells[shell](root, {}, "exo-gpu", "_EXO_GPU_COMPLETE").source())
