"""`imagenet-mds configs`: the training configurations that ship with the program."""

import json
from typing import Annotated

import typer

configs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List or show training configurations.")


@configs_app.command("ls")
def configs_ls() -> None:
    """List the shipped configurations."""
    from imagenet_mds.resources import config_names, resource_folder

    for name in config_names():
        first = (resource_folder("configs") / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:8} {first.removeprefix('# ')}")


@configs_app.command("show")
def configs_show(
    name: Annotated[str, typer.Argument(help="Name of a shipped configuration, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as optimizer.lr=0.1.")
    ] = None,
) -> None:
    """Print a configuration as JSON, with every default filled in."""
    from imagenet_mds_train.config.load import load_config

    typer.echo(json.dumps(load_config(name, overrides or ()).model_dump(mode="json"), indent=2))
