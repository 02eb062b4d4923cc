"""Helpers of the tests: commands, servers, drawn images, datasets, data of earlier versions."""

from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"
