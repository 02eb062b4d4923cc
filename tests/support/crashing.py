"""`python -m tests.support.crashing PARENT CASE`: kill a command before each of its changes to the disk, one by one.

For every change, a child is forked that exits there as if killed, without any cleanup. Then the same command runs to
its end, and every file must be as if it had never been stopped. Prints the number of changes.
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_mds.cli.verify import verify
from imagenet_mds_convert import run
from tests.support.drawing import files, folders, make_tree
from tests.support.running import convert_here, run_tasks_here

KILLED = 99


def _changes(event: str, arguments: tuple[Any, ...], root: Path) -> bool:
    if event == "open":
        path, _, flags = arguments
        written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(written) and str(path).startswith(str(root))
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        # While a whole folder is removed, names are relative to an open folder.
        return str(arguments[0]).startswith(str(root)) or not str(arguments[0]).startswith("/")
    return False


def _run_until(command: Callable[[], int], root: Path, change: int) -> bool:
    """Run in a child until just before change number `change`, and return whether it got there."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        made = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal made
            if _changes(event, arguments, root):
                if made == change:
                    os._exit(KILLED)
                made += 1

        sys.addaudithook(watch)
        try:
            status = command()
        except BaseException:  # the child must end here, not go on with the tests
            status = 98
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, KILLED), status
    return status == KILLED


def _crash_everywhere(parent: Path, before: Callable[[Path], None], command: Callable[[Path], int]) -> int:
    expected = parent / "expected"
    before(expected)
    assert command(expected) == 0
    change = 0
    dest = parent / "dest"
    while True:
        before(dest)
        killed = _run_until(lambda: command(dest), dest, change)
        if killed:
            # Interrupt the continuation too: at its first change, and then at its third.
            _run_until(lambda: command(dest), dest, 0)
            _run_until(lambda: command(dest), dest, 2)
        assert command(dest) == 0, change
        assert files(dest) == files(expected), (change, sorted(files(dest)), sorted(files(expected)))
        assert folders(dest) == folders(expected), (change, folders(dest))
        shutil.rmtree(dest)
        if not killed:
            return change
        change += 1


def _main(parent: Path, case: str) -> None:
    vars(run)["run_tasks"] = run_tasks_here
    tree = make_tree(parent / "tree", n00000001=3, n00000002=2)

    def nothing(dest: Path) -> None:
        dest.mkdir()

    def another_dataset(dest: Path) -> None:
        convert_here(tree, dest, seed=1)

    def broken_dataset(dest: Path) -> None:
        convert_here(tree, dest)
        for path in dest.glob("*/*"):
            if path.name in ("keys.txt", "index.json", "shard.00001.mds"):
                path.write_bytes(b"broken")

    def plain(dest: Path) -> int:
        return convert_here(tree, dest)

    def overwriting(dest: Path) -> int:
        return convert_here(tree, dest, overwrite=True)

    def repairing(dest: Path) -> int:
        return verify(str(dest), repair=str(tree))

    before, command = {
        "convert": (nothing, plain),
        "overwrite": (another_dataset, overwriting),
        "repair": (broken_dataset, repairing),
    }[case]
    changes = _crash_everywhere(parent, before, command)
    print(f"changes: {changes}")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
