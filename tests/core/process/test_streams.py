"""Output that cannot be written is ignored."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

from imagenet_mds.process.streams import ForgivingStream, forgive_lost_output


def test_what_can_be_written_is_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    forgive_lost_output()
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
    assert capsys.readouterr() == ("out\n", "err\n")
    assert sys.stdout.encoding


def test_a_pipe_without_a_reader_is_ignored() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w", encoding="utf-8")
    stream = ForgivingStream(file)
    for _ in range(3):
        assert stream.write("x" * 100_000) == 100_000
        stream.flush()
    with contextlib.suppress(BrokenPipeError):
        file.close()
    assert stream.write("closed by now") == 13
    stream.flush()


def test_a_full_disk_is_ignored() -> None:
    file = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 # closing it fails, which is the point
    stream = ForgivingStream(file)
    stream.write("line\n")
    stream.flush()
    with pytest.raises(OSError, match="No space left"):
        file.close()
