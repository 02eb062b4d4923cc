"""`imagenet-mds replay`: some batches of a run again, each loss compared with the log."""

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_mds.cli.options import AsJson, CacheFolder, CacheLimit, DataLocation, parse_size
from imagenet_mds.cli.tables import print_columns, print_line, print_note
from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from imagenet_mds.process.streams import forgive_lost_output
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from imagenet_mds_train.replay.comparison import Verdict
    from imagenet_mds_train.run.replay import Replay

_BATCHES = 20
"""The default of `logging.every_batches`, so that at least one of the batches is in the log."""


def replay(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder of a run, its name in runs/, or its s3:// address.")
    ],
    data: DataLocation = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    batches: Annotated[int, typer.Option(min=1, metavar="N", help="Batches after the checkpoint.")] = _BATCHES,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Checkpoint, for example ep0-ba30.pt; by default the oldest that logged batches follow.",
        ),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; by default as many as logged the batches.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train batches of a run again, and compare their losses.

    They start from one of its checkpoints, and the losses are those of its log. The run is only read, and may be in
    progress. Losses of a deterministic run must be equal bit for bit, others within 2%. Exit status 1 says that they
    are not: the machine, the driver, a library or a resume is not what it was.

    The dataset is by default that of the run's last start.
    """
    from imagenet_mds_train.run.find import find_run_folder
    from imagenet_mds_train.run.replay import Replay, dataset_of

    forgive_lost_output()
    limit_bytes = parse_size(cache_limit, "--cache-limit") if cache_limit is not None else None
    folder = find_run_folder(run)
    dataset = dataset_of(folder, data, cache, limit_bytes)
    ready = Replay.prepare(folder, dataset, batches=batches, checkpoint=checkpoint, ranks=ranks)
    for warning in ready.start.warnings:
        print_note(warning)
    if not as_json:
        _describe(ready)
    status, verdict = ready.run(lambda: print("starting the ranks ...", file=sys.stderr, flush=True))
    if verdict is None:
        if status == EXIT_STOPPED:
            print("imagenet-mds: the replay was stopped; nothing of it is kept", file=sys.stderr)
        raise typer.Exit(status)
    if as_json:
        print(json.dumps(_as_values(ready, verdict), indent=2, allow_nan=False))
    else:
        _print(ready, verdict)
    raise typer.Exit(EXIT_FAILED if verdict.differing else EXIT_DONE)


def _describe(ready: "Replay") -> None:
    start, config = ready.start, ready.start.config
    compared = "equal bit for bit" if config.system.deterministic else "close, as the run is not deterministic"
    for key, value in (
        ("run", start.run.location),
        ("dataset", f"{start.dataset.location} ({start.train.info.fingerprint})"),
        ("checkpoint", ready.checkpoint.basename),
        ("batches", f"{ready.checkpoint.batch + 1:,} to {ready.until_batch:,} on {counted(config.ranks, 'rank')}"),
        ("losses", f"{len(ready.logged):,} in the log, which must be {compared}"),
    ):
        print_line(f"{key + ':':12} {value}")
    sys.stdout.flush()


def _print(ready: "Replay", verdict: "Verdict") -> None:
    """Print the losses, and the verdict as the last line."""
    rows = [
        (f"{one.batch:,}", f"{one.attempt}", _loss(one.logged), _loss(one.now), _difference(one.difference))
        for one in verdict.compared
    ]
    print_columns(("batch", "attempt", "loss in the log", "loss now", "difference"), rows, right=range(5))
    if verdict.torn:
        print_line(
            f"note: the attempts of the run differ among themselves, first at batch {verdict.torn[0]:,}: a resume or a "
            f"machine of the run was not sound"
        )
    if others := sorted({one.attempt for one in verdict.compared if not one.judged}):
        numbers = ", ".join(map(str, others))
        print_line(f"note: not judged is attempt {numbers}, whose batches were trained on other numbers of ranks")
    print_line(_verdict(ready, verdict))


def _loss(loss: float | None) -> str:
    """A loss with all of the digits that a float32 has."""
    return "not finite" if loss is None else f"{loss:.9g}"


def _difference(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def _verdict(ready: "Replay", verdict: "Verdict") -> str:
    """What the replay found, in a line."""
    losses = counted(len(verdict.judged), "loss", "losses")
    where = f"from {ready.checkpoint.basename} on {counted(ready.start.config.ranks, 'rank')}"
    if not verdict.differing:
        several = len(verdict.judged) > 1
        if verdict.bound:
            most = f"by at most {_difference(verdict.largest)}, within {verdict.bound:g}"
            found = f"{'differ' if several else 'differs'} {most}"
        else:
            found = f"{'are' if several else 'is'} equal bit for bit"
        return f"agrees: {losses} {where} {found}"
    first = verdict.differing[0]
    most = f"at most {verdict.bound:g} is expected" if verdict.bound else "none is expected"
    return (
        f"does not agree: {len(verdict.differing):,} of {losses} {where} differ, first that of batch {first.batch:,}, "
        f"{_loss(first.logged)} in the log and {_loss(first.now)} now ({_difference(first.difference)}; {most}). "
        f"The largest difference is {_difference(verdict.largest)}. {_reasons(ready, verdict)}"
    )


def _reasons(ready: "Replay", verdict: "Verdict") -> str:
    """What a difference can mean, as far as the log says with what the run computed."""
    known = []
    ranks = sorted({one.ranks for one in verdict.judged if one.ranks is not None} - {ready.start.config.ranks})
    if ranks:
        known.append(f"ranks ({', '.join(map(str, ranks))} in the log, {ready.start.config.ranks} now)")
    known += [f"{name} ({then} in the log, {now} now)" for name, (then, now) in verdict.changed.items()]
    if known:
        return f"Changed since: {', '.join(known)}"
    if verdict.then:
        same = ", ".join(f"{name} {value}" for name, value in verdict.now.items() if value is not None)
        return f"Ranks and machine are as the log has them ({same}): suspect the hardware, the log or the resume"
    return "It can mean another number of ranks or threads, another machine, driver or library version, or a fault"


def _as_values(ready: "Replay", verdict: "Verdict") -> dict[str, Any]:
    """Plain values for JSON; what is not a finite number is null."""
    losses = [
        {
            "batch": one.batch,
            "attempt": one.attempt,
            "ranks": one.ranks,
            "logged": one.logged,
            "now": one.now,
            "difference": one.difference if math.isfinite(one.difference) else None,
            "judged": one.judged,
        }
        for one in verdict.compared
    ]
    return {
        "run": ready.start.run.location,
        "checkpoint": ready.checkpoint.basename,
        "batch": ready.checkpoint.batch,
        "ranks": ready.start.config.ranks,
        "deterministic": ready.start.config.system.deterministic,
        "bound": verdict.bound,
        "agrees": not verdict.differing,
        "first_difference": verdict.differing[0].batch if verdict.differing else None,
        "largest_difference": verdict.largest if math.isfinite(verdict.largest) else None,
        "attempts_differ": verdict.torn,
        "machine": {"log": verdict.then, "now": verdict.now},
        "losses": losses,
    }
