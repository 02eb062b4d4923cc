"""Files that ship with the program. In a wheel they are beside the code, in a checkout at its root."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str) -> Path:
    """Return the folder `configs` or `infra`, or one in it: the package's if it has it, otherwise the checkout's."""
    packaged = _PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def resource_file(name: str) -> Path:
    """Return the file `requirements.lock`, from the package if it has it, otherwise from the checkout."""
    packaged = _PACKAGE / "_data" / name
    return packaged if packaged.is_file() else _PACKAGE.parent / name


def config_names() -> list[str]:
    """Return the names of the shipped configurations, sorted."""
    return sorted(path.stem for path in resource_folder("configs").glob("*.yaml"))


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in resource_folder("configs").glob("recipes/*.yaml"))


def find_config(name: str) -> Path | None:
    """Return the file of a shipped configuration or recipe, None if there is none of that name."""
    return config_path(name) or recipe_path(name)


def names_of_configs() -> str:
    """Return the names of all shipped configurations and recipes, for messages."""
    return ", ".join([*config_names(), *recipe_names()])


def recipe_path(name: str) -> Path | None:
    """Return the file of a shipped recipe, None if there is none of that name."""
    return resource_folder("configs") / "recipes" / f"{name}.yaml" if name in recipe_names() else None


def config_path(name: str) -> Path | None:
    """Return the file of a shipped configuration, None if there is none of that name."""
    path = resource_folder("configs") / f"{name}.yaml"
    return path if name in config_names() else None
