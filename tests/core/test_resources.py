"""Files that ship with the program."""

from pathlib import Path

import pytest

from imagenet_mds import resources


def test_the_configurations_are_found_by_name() -> None:
    assert {"demo", "dev", "phase1", "phase2", "phase3"} <= set(resources.config_names())
    for name in resources.config_names():
        path = resources.config_path(name)
        assert path is not None
        assert path.is_file()


@pytest.mark.parametrize("name", ["phase4", "", "../configs/phase1", "phase1.yaml"])
def test_other_names_are_not_configurations(name: str) -> None:
    assert resources.config_path(name) is None


def test_an_installed_package_uses_the_files_beside_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "package" / "_data").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "package")
    assert resources.resource_folder("configs") == tmp_path / "configs"
    (tmp_path / "package" / "_data" / "configs").mkdir()
    assert resources.resource_folder("configs") == tmp_path / "package" / "_data" / "configs"
