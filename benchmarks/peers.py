"""The other tools of the field, each in an environment of its own under `.bench/`, so that none decides our versions.

`python benchmarks/peers.py` (`make bench-setup`) makes them; what does not install is said with the last line of the
installer, here and in the tables. ffcv is compiled: it needs Debian's pkg-config, libturbojpeg0-dev and libopencv-dev.
"""

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".bench"
PEERS = {
    "webdataset": ("webdataset", "numpy"),
    "arrayrecord": ("array-record",),
    "litdata": ("litdata", "torch", "pillow"),
    "ffcv": ("ffcv", "numpy", "opencv-python-headless", "pillow"),
}
_MODULES = {"arrayrecord": "array_record"}


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return HOME / peer / "bin" / "python"


def why_missing(peer: str) -> str | None:
    """Why a peer cannot take part; None if it can."""
    reason = HOME / f"{peer}.failed"
    if reason.exists():
        return reason.read_text(encoding="utf-8").strip()
    return None if python_of(peer).exists() else "not installed: make bench-setup"


def main() -> None:
    """Make the environments that are not there."""
    HOME.mkdir(exist_ok=True)
    for peer, packages in PEERS.items():
        failed = HOME / f"{peer}.failed"
        if not python_of(peer).exists() or failed.exists():
            _install(peer, packages, failed)
        print(f"{peer}: {why_missing(peer) or 'ready'}")


def _install(peer: str, packages: tuple[str, ...], failed: Path) -> None:
    failed.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", HOME / peer], check=True)
    for command in (
        [python_of(peer), "-m", "pip", "install", "--quiet", *packages],
        [python_of(peer), "-c", f"import {_MODULES.get(peer, peer)}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
            failed.write_text(f"does not install here: {lines[-1].strip()}\n", encoding="utf-8")
            return


if __name__ == "__main__":
    main()
