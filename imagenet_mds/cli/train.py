"""`imagenet-mds train`: start a run or continue it."""

import contextlib
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_mds.cli.nodes import follow, leading
from imagenet_mds.cli.options import (
    CacheFolder,
    CacheLimit,
    ConfigName,
    DataLocation,
    Overrides,
    Phase,
    Ranks,
    config_name,
    given_data,
    open_dataset,
)
from imagenet_mds.cli.starting import check_data, print_given_up, print_notes
from imagenet_mds.cli.tables import print_line, print_note
from imagenet_mds.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError, WorldError
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.process.streams import forgive_lost_output
from imagenet_mds.words import counted, duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from imagenet_mds_train.nodes.leader import Leader
    from imagenet_mds_train.run.folder import RunFolder
    from imagenet_mds_train.run.launch import Ended
    from imagenet_mds_train.run.mirror import RunMirror
    from imagenet_mds_train.run.start import Start
    from imagenet_mds_train.run.until_done import Restart


def train(
    overrides: Overrides = None,
    phase: Phase = None,
    config: ConfigName = None,
    data: DataLocation = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; by default that of the configuration.")] = None,
    experiment_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Group of runs: a folder in --save, and a group at W&B.")
    ] = None,
    save: Annotated[
        str,
        typer.Option(metavar="FOLDER", help="Folder for runs, or s3:// address, from which any machine continues."),
    ] = "runs",
    ranks: Ranks = None,
    from_checkpoint: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Run, or its .pt file, whose weights a new run starts from."),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="ResNet weights (torchvision, timm or `export`; a file or s3:// address) that a new run starts from.",
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Bit-identical weights on the same number of ranks, at the cost of speed: system.deterministic=true.",
        ),
    ] = False,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="Restart in place after a crash or a hang, as long as it helps.")
    ] = False,
    node_count: Annotated[
        int | None, typer.Option("--nodes", min=1, help="Number of machines that train together.")
    ] = None,
    node_rank: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Number of this machine; node 0 keeps the run.")
    ] = None,
    master: Annotated[
        str | None, typer.Option(metavar="HOST[:PORT]", help="Address of node 0, port 29500 by default.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan without starting anything.")] = False,
    only_try: Annotated[
        bool, typer.Option("--dry-run", help="Train a few batches, validate, save, continue, and say what a run takes.")
    ] = False,
) -> None:
    """Train a ResNet on a dataset. Run it again to continue."""
    from imagenet_mds.dataset.access import refuse_missing
    from imagenet_mds_train.config.load import load_config  # omegaconf and pydantic models
    from imagenet_mds_train.nodes.place import Nodes
    from imagenet_mds_train.run.description import describe, estimates
    from imagenet_mds_train.run.folder import RunFolder
    from imagenet_mds_train.run.fork import Fork
    from imagenet_mds_train.run.mirror import RunMirror
    from imagenet_mds_train.run.start import Start

    forgive_lost_output()
    name = config_name(phase, config)
    data = given_data(data)
    settings = load_config(name, tuple(overrides or ()), ranks, deterministic=deterministic)
    if nodes := Nodes.given(node_count, node_rank, master):
        nodes.ranks_here(settings.ranks)
    run_name = Path(name).stem if run_name is None else run_name
    for option, given in (("--run-name", run_name), ("--experiment-name", experiment_name)):
        if given is not None and (given in (".", "..") or "/" in given):
            raise UserError(f"{option} {given!r}: pass the name of a folder, without slashes")
    place = [part for part in (experiment_name, run_name) if part]
    if "://" in save and not save.startswith("s3://"):
        raise UserError(f"--save {save}: pass a folder or an s3:// address")
    if nodes and only_try:
        raise UserError("--dry-run tries one machine: pass it without --nodes, with the --ranks of one")
    mirror = RunMirror.at("/".join([save.rstrip("/"), *place])) if save.startswith("s3://") else None
    run = mirror.folder if mirror else RunFolder(Path(save, *place))
    dataset = open_dataset(data, cache, cache_limit)
    if nodes and nodes.rank and not plan:
        raise typer.Exit(follow(settings, dataset, run, nodes, until_done=until_done))
    if from_checkpoint and pretrained:
        raise UserError("pass --from-checkpoint or --pretrained: a run starts from one file")
    with leading(None if plan else nodes) as leader:
        if mirror:
            _pull(mirror, plan=plan)
        # A run that has a checkpoint continues from it, whatever became of the one that it began from.
        fork = None
        if not run.checkpoints.names():
            fork = Fork.at(from_checkpoint) if from_checkpoint else Fork.pretrained(pretrained) if pretrained else None
        prepare = partial(Start.prepare, settings, dataset, run, fork, experiment_name, nodes=nodes)
        start = prepare(planned=plan)
        if only_try:
            print_notes(start.warnings)
            refuse_missing(start.shards())
            raise typer.Exit(_try(start, run.path.parent if mirror else Path(save)))
        print_notes([*start.warnings, None if mirror else _elsewhere(run, Path(save), data)])
        result = run.read_result()
        if result is not None:
            print(f"{run.location} is finished: {_figures(result)}. Pass --run-name to start another run")
            return
        for key, value in describe(start) + (estimates(start) if plan else []):
            print(f"{key + ':':18} {value}", flush=True)
        if plan:
            refuse_missing(start.shards())
            return
        with run.lock() as lock:
            status = _train(prepare, run, lock, mirror, leader, until_done=until_done)
        raise typer.Exit(status)


def _train(
    prepare: "Callable[[], Start]",
    run: "RunFolder",
    lock: int,
    mirror: "RunMirror | None",
    leader: "Leader | None",
    *,
    until_done: bool,
) -> int:
    """Start the run or continue it, under its lock; return the exit status."""
    from imagenet_mds_train.run.launch import Ended
    from imagenet_mds_train.run.until_done import run_until_done

    if mirror:
        mirror = mirror.claimed()
        mirror.pull(print_note)
    # Prepared again under the lock: another process may have continued or finished the run since.
    start = prepare()
    if run.read_result() is not None:
        print(f"Another process finished {run.location}")
        return EXIT_DONE
    if not until_done:
        return _conclude(_run(start, run, lock, mirror, leader), start, run)

    def once() -> "Ended":
        nonlocal start
        try:
            # Prepared again: the run continues from another checkpoint than the start before.
            start = prepare()
            return _run(start, run, lock, mirror, leader)
        except WorldError as error:
            print_line(f"imagenet-mds: {error}", to_stderr=True)
            return Ended(error.exit_status, str(error))

    ended = run_until_done(once, lambda: run.saved_batch or 0, partial(_say_restart, run), print_given_up)
    return _conclude(ended, start, run)


def _pull(mirror: "RunMirror", *, plan: bool) -> None:
    """Make the working copy of a run in S3 equal to it; unless it is only planned, see that it can be written."""
    from imagenet_mds_train.run.permissions import check_permissions

    with mirror.folder.lock():
        if not plan:
            check_permissions(mirror.storage)
        mirror.pull(print_note)
        if not plan and mirror.lacks_result:
            mirror.claimed().push_files()


def _try(start: "Start", save: Path) -> int:
    from imagenet_mds_train.run.dry_run import dry_run

    print("starting the ranks, twice ...", file=sys.stderr, flush=True)
    found = dry_run(start.config, start.dataset, save, start.fork)
    if found.status != EXIT_DONE or found.hours is None:
        return found.status
    config = start.config
    checkpoint_mb = (found.checkpoint_bytes or 0) / 1e6
    print(
        f"trained, validated, saved and continued: {found.images_per_second:,.0f} images/s at "
        f"{config.augment.size_px} px on {counted(config.ranks, 'rank')}, {found.waiting_share:.0%} of the time "
        f"waiting for data, a checkpoint of {checkpoint_mb:,.0f} MB"
    )
    if found.peak_gib is not None:
        print(f"GPU memory: {found.peak_gib:.1f} GiB at most in the first rank")
    price = config.logging.dollars_per_hour
    cost = f", ${found.hours * price:,.2f} at {price:g} an hour" if price else ""
    print(f"the whole run takes about {duration(found.hours)}{cost}")
    return EXIT_DONE


def _elsewhere(run: "RunFolder", save: Path, data: str) -> str | None:
    """A note if a run of this name is where the same command would have begun it from another folder, as cron and
    systemd start commands in."""
    if save.is_absolute() or (run.path / "run.json").exists():
        return None
    beside = [] if "://" in data else [Path(data).absolute().parent]
    for folder in (Path.home(), *beside):
        other = folder / run.path
        if (other / "run.json").is_file():
            return f"a run of this name lies in {other}: to continue that one, pass --save {folder / save}"
    return None


def _say_restart(run: "RunFolder", ended: "Ended", restart: "Restart") -> None:
    """Print that the run is restarted, and why, and log it."""
    from imagenet_mds_train.loggers.lines import append_event
    from imagenet_mds_train.run.until_done import MOST_RESTARTS

    which = f"{restart.number} of at most {MOST_RESTARTS} without a new checkpoint"
    print_line(f"restarting in {restart.pause_seconds:g} s ({which}): {ended.reason}", to_stderr=True)
    events = run.events()
    with contextlib.suppress(OSError):  # the run goes on without the line
        append_event(
            run.log,
            "restart",
            events[-1]["attempt"] if events else 1,
            batch=run.saved_batch or 0,
            reason=ended.reason,
            pause_seconds=restart.pause_seconds,
        )


def _run(start: "Start", run: "RunFolder", lock: int, mirror: "RunMirror | None", leader: "Leader | None") -> "Ended":
    """Check what the ranks read, record the run, and start them."""
    check_data(start)
    processors, load = usable_processors(), os.getloadavg()[0]
    if load > processors and start.on_cpu:
        print_notes(
            [f"this machine is busy (load {load:.0f} on {counted(processors, 'processor')}), which slows training down"]
        )
    if start.has_microbatch_to_find:
        print("searching for the largest microbatch that fits the GPU ...", file=sys.stderr, flush=True)
        start = start.with_microbatch_found()
        print(f"microbatches of {start.config.device_microbatch_size} images, which this run keeps", flush=True)
    # Last, because a run that was refused must not take its name.
    start.record()
    if mirror:
        mirror.prepare(start.checkpoint)
    print("starting the ranks ...", file=sys.stderr, flush=True)
    try:
        ended = start.launch(lock, generation=mirror.lease.generation if mirror and mirror.lease else 0, leader=leader)
    except UserError:
        _give_name_back(run, mirror)
        raise
    if ended.status == EXIT_USER:
        _give_name_back(run, mirror)
    elif mirror and ended.status == EXIT_DONE:
        mirror.push_files()
    elif mirror:
        # The checkpoint is there already: S3 that does not answer now must not hide how the run ended.
        mirror.push_files_if_it_answers()
    return ended


def _give_name_back(run: "RunFolder", mirror: "RunMirror | None") -> None:
    """Let another run have the name of one that was refused before its first batch."""
    if not run.is_untouched:
        return
    if mirror:
        mirror.forget()
    run.forget()


def _conclude(ended: "Ended", start: "Start", run: "RunFolder") -> int:
    """Print how the run ended; return the exit status."""
    status = ended.status
    if status == EXIT_DONE:
        result = run.read_result()
        assert result is not None
        print(f"{run.location} is finished after {result['batches']:,} batches: {_figures(result)}")
        _summarize(start, run, result)
    elif status == EXIT_STOPPED:
        print(f"{run.location} is stopped: run the same command again to continue", file=sys.stderr)
    elif status != EXIT_USER:
        print(
            f"imagenet-mds: {run.location} failed. Its checkpoints are kept: once the cause is fixed, run the same "
            f"command again to continue",
            file=sys.stderr,
        )
    return status


def _summarize(start: "Start", run: "RunFolder", result: dict[str, Any]) -> None:
    """Print what the run took and where everything lies, and its row for a table of results."""
    config = start.config
    # From the first to the last event of each start; starting the ranks is not in the log.
    took = [
        duration(result["hours"]),
        counted(result["starts"], "start"),
        f"{rate:,.0f} images/s" if (rate := result["images_per_second"]) else "too short for a speed",
    ]
    if result["dollars"] is not None:
        took.append(f"${result['dollars']:,.2f}")
    rows = [("took", ", ".join(took))]
    if best := result["best"]:
        name = f"checkpoints/ep{best['epoch']}-ba{best['batch']}.pt" if run.address else "best.pt"
        there = f"{run.location}/{name}"
        rows.append(("best", f"top-1 {best['top1']:.2%} after epoch {best['epoch']}: {there}"))
    rows.append(("log", str(run.log)))
    following = [
        "imagenet-mds",
        "eval",
        run.location,
        "--data",
        start.dataset.location,
        "--report",
        f"{run.path}/eval" if run.address is None else "eval",
    ]
    rows.append(("next", shlex.join(following)))
    for name, value in rows:
        print_line(f"  {name + ':':6} {value}")
    accuracy = [f"{result[name]:.2%}" if name in result else "-" for name in ("top1", "top5")]
    row = [
        run.path.name,
        config.recipe or "-",
        f"{config.schedule.epochs}",
        f"{start.train_samples:,}",
        *accuracy,
        *took,
    ]
    print_line(f"  row:   | {' | '.join(row)} |  (run, recipe, epochs, images, top-1, top-5, time, ...)")


def _figures(result: dict[str, Any]) -> str:
    if "top1" not in result:
        return "not validated"
    return f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}"
