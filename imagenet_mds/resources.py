"""The files shipped with the program: in a wheel beside the code, in a checkout at its root."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_folder(name: str) -> Path:
    """The folder `configs` or `infra`: the package's own data first, then the checkout's."""
    packaged = _PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def config_names() -> list[str]:
    """The names of the shipped configurations."""
    return sorted(path.stem for path in resource_folder("configs").glob("*.yaml"))


def config_path(name: str) -> Path | None:
    """The file of a shipped configuration, None if there is none of that name."""
    path = resource_folder("configs") / f"{name}.yaml"
    return path if name in config_names() else None
