"""``gpudedup bench peers``: the command that makes the peers' environments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def peers(
    install: Annotated[
        Path, typer.Option(metavar="DIR", help="Directory of the environments, one a peer. Uses the network, by pip.")
    ],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="PEER", help="Peers to install; all, if none is named.")
    ] = None,
) -> None:
    """Install other deduplicators, each in an environment of its own, to measure them with bench --peers DIR."""
    from gpudedup.bench.peers.environments import install as make
    from gpudedup.display import one_line

    failed = 0
    for peer, answer in make(install, names or (), lambda line: typer.echo(one_line(line), err=True)):
        failed += answer.startswith("cannot")
        typer.echo(f"{peer.name}: {one_line(answer)}")
    if failed:
        raise typer.Exit(1)
