"""The program as an archive that an instance installs: the packages that run here, the lock, the unit."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from imagenet_mds.resources import resource_file, resource_folder

PACKAGES = ("imagenet_mds", "imagenet_mds_convert", "imagenet_mds_train", "imagenet_mds_infra")
_DATA = "app/imagenet_mds/_data"


def pack() -> tuple[bytes, str]:
    """Pack the program, whether it is installed or a checkout.

    Returns:
        A .tar.gz that is the same for the same files, and its sha256 in hexadecimal: `app/` with the packages,
        `requirements.lock`, `imagenet-mds.service`.
    """
    members = dict(_packages())
    for folder in ("configs", "infra/aws"):
        for name, path in _files(resource_folder(folder)):
            if "/." not in f"/{name}":  # neither .terraform nor what editors leave
                members[f"{_DATA}/{folder}/{name}"] = path
    members["requirements.lock"] = resource_file("requirements.lock")
    members["imagenet-mds.service"] = resource_folder("infra/aws") / "imagenet-mds.service"
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(members):
            data = members[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    packed = gzip.compress(raw.getvalue(), mtime=0)
    return packed, hashlib.sha256(packed).hexdigest()


def _packages() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        for name, path in _files(Path(next(iter(spec.submodule_search_locations)))):
            if "__pycache__" not in name:
                yield f"app/{package}/{name}", path


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield path.relative_to(root).as_posix(), path
