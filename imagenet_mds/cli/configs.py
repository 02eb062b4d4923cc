"""`imagenet-mds configs`: the training configurations and recipes that ship with the program."""

import json
from pathlib import Path
from typing import Annotated

import typer

from imagenet_mds.cli.command import Command
from imagenet_mds.cli.options import Overrides
from imagenet_mds.errors import UserError

configs_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show, copy, check and explain training configurations."
)

Name = Annotated[str, typer.Argument(help="Name of a shipped configuration or recipe, or a YAML file.")]


@configs_app.command("ls", cls=Command)
def configs_ls() -> None:
    """List the shipped configurations and recipes."""
    from imagenet_mds.resources import config_names, find_config, recipe_names

    for name in [*config_names(), *recipe_names()]:
        path = find_config(name)
        assert path is not None
        first = path.read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:8} {first.removeprefix('# ')}")


@configs_app.command("show", cls=Command)
def configs_show(
    name: Name,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, without the layers.")] = False,
) -> None:
    """Print a configuration with every default filled in.

    A comment names the layer that set a value: the recipe, the file, or the command line. Defaults have no comment.
    """
    from imagenet_mds_train.config.display import as_yaml
    from imagenet_mds_train.config.load import load_config, load_layers, origins

    config = load_config(name, overrides or ())
    if as_json:
        typer.echo(json.dumps(config.model_dump(mode="json"), indent=2))
    else:
        typer.echo(as_yaml(config, origins(load_layers(name, overrides or ()))), nl=False)


@configs_app.command("cp", cls=Command)
def configs_cp(
    name: Annotated[str, typer.Argument(help="Name of a shipped configuration or recipe.")],
    file: Annotated[Path, typer.Argument(help="The new file.")],
) -> None:
    """Copy a shipped configuration to start your own from."""
    from imagenet_mds.resources import find_config, names_of_configs

    if (shipped := find_config(name)) is None:
        raise UserError(f"there is no configuration {name}: pass one of {names_of_configs()}")
    if file.is_dir():
        file = file / f"{name}.yaml"
    try:
        with file.open("x", encoding="utf-8") as copy:
            copy.write(shipped.read_text(encoding="utf-8"))
    except FileExistsError:
        raise UserError(f"{file} is there already: choose another name, or remove it") from None
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None
    typer.echo(f"{file}: edit it, then `imagenet-mds configs validate {file}` and `imagenet-mds train --config {file}`")


@configs_app.command("validate", cls=Command)
def configs_validate(name: Name, overrides: Overrides = None) -> None:
    """Check a configuration, and say in one line what it trains."""
    from imagenet_mds_train.config.display import in_words
    from imagenet_mds_train.config.load import load_config

    typer.echo(f"{name} is valid: {in_words(load_config(name, overrides or ()))}")


@configs_app.command("explain", cls=Command)
def configs_explain(
    key: Annotated[str | None, typer.Argument(help="Dotted key or group; all keys without it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The reference page of all keys.")] = False,
) -> None:
    """Print what a key means and what it accepts.

    Its value in each shipped configuration is printed too.
    """
    from imagenet_mds_train.config.reference import all_keys, explained, keys_of, reference_page

    if markdown:
        typer.echo(reference_page(), nl=False)
    elif key is None:
        for known in all_keys():
            typer.echo(f"{known.path:40} {known.summary}")
    else:
        typer.echo(explained(keys_of(key)))
