"""Other tools of the field, each in its own environment under `.bench/`, so that they do not decide our versions.

`python benchmarks/peers.py` (`make bench-setup`) creates the environments. If a tool does not install, the last line of
the installer is reported here and in the tables. uv links the files that environments share, such as torch, so that all
of them take little more disk than one. ffcv is compiled: it needs Debian's pkg-config, libturbojpeg0-dev and
libopencv-dev.
"""

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / ".bench"

# The versions of the baseline, so that only the loaders differ.
_TORCH = ("torch==2.7.0", "torchvision==0.22.0", "pillow==11.3.0")

PEERS = {
    "webdataset": ("webdataset", "numpy", *_TORCH),
    "arrayrecord": ("array-record",),
    "litdata": ("litdata", *_TORCH),
    # Its sources need NumPy 1.
    "ffcv": ("ffcv", "numpy<2", "opencv-python-headless<4.12", "numba", *_TORCH),
    "tensorflow": ("tensorflow-cpu",),
    "dali": ("nvidia-dali-cuda120", "numpy"),
}
_MODULES = {"arrayrecord": "array_record", "dali": "nvidia.dali"}


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return HOME / peer / "bin" / "python"


def why_missing(peer: str) -> str | None:
    """Return why a peer cannot take part, None if it can."""
    reason = HOME / f"{peer}.failed"
    if reason.exists():
        return reason.read_text(encoding="utf-8").strip()
    return None if (HOME / f"{peer}.ready").exists() else "not installed: make bench-setup"


def main() -> None:
    """Create the environments that do not exist or have other packages."""
    HOME.mkdir(exist_ok=True)
    for peer, packages in PEERS.items():
        _install(peer, packages)
        print(f"{peer}: {why_missing(peer) or 'ready'}")


def _install(peer: str, packages: tuple[str, ...]) -> None:
    failed, ready = HOME / f"{peer}.failed", HOME / f"{peer}.ready"
    if ready.exists() and ready.read_text(encoding="utf-8") == "\n".join(packages):
        return
    for stamp in (failed, ready):
        stamp.unlink(missing_ok=True)
    python = python_of(peer)
    for command in (
        [sys.executable, "-m", "uv", "venv", "--quiet", "--clear", "--python", sys.executable, HOME / peer],
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *packages],
        [python, "-c", f"import {_MODULES.get(peer, peer)}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["no reason given"]
            failed.write_text(f"does not install here: {lines[-1].strip()}\n", encoding="utf-8")
            return
    ready.write_text("\n".join(packages), encoding="utf-8")


if __name__ == "__main__":
    main()
