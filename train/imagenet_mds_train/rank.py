"""One rank of a run: how it starts, how it ends, and its exit status."""

import contextlib
import errno
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.devices import Device
from composer.loggers import LoggerDestination
from composer.utils import dist, get_device, reproducibility

from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, EXIT_LASTING, EXIT_STOPPED, EXIT_USER, CommandError
from imagenet_mds.process.streams import forgive_lost_output
from imagenet_mds.storage.atomic import write_json
from imagenet_mds_train.checkpoints.best import BestCheckpoint
from imagenet_mds_train.checkpoints.pace import SavePace
from imagenet_mds_train.checkpoints.payload import make_payload
from imagenet_mds_train.checkpoints.random_state import RandomStateOnResume
from imagenet_mds_train.checkpoints.saver import Checkpoints, Saved
from imagenet_mds_train.checkpoints.store import LEAST_KEPT, CheckpointRecord
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data.stream import use_own_blocks
from imagenet_mds_train.history.events import history_of, read_events
from imagenet_mds_train.interruption.board import Board
from imagenet_mds_train.interruption.heartbeat import Heartbeat
from imagenet_mds_train.interruption.stop import StopRequest, StopRequested
from imagenet_mds_train.loggers.console import Console, Outlook
from imagenet_mds_train.loggers.gpu_metrics import GPUMetrics
from imagenet_mds_train.loggers.loss_guard import LossGuard, NotFinite
from imagenet_mds_train.loggers.machine import machine
from imagenet_mds_train.loggers.outside import outside_loggers
from imagenet_mds_train.loggers.run_log import RunLog
from imagenet_mds_train.recipe.average import average_in_model
from imagenet_mds_train.replay.callback import ReplayedLosses
from imagenet_mds_train.run.estimate import remaining_work
from imagenet_mds_train.run.failures import EXIT_PEER_LOST, EXIT_PORT_TAKEN, is_peer_lost, is_port_taken, worker_failure
from imagenet_mds_train.run.folder import RunFolder, read_object
from imagenet_mds_train.run.job import RankJob
from imagenet_mds_train.run.mirror import RunMirror
from imagenet_mds_train.run.uploads import Uploads
from imagenet_mds_train.sweep.callback import LearningRateSweep
from imagenet_mds_train.sweep.curve import Sweep
from imagenet_mds_train.trainer import build_trainer


def main() -> None:
    """Run one rank: `python -c ... JOB.json`, with torch's distributed environment variables set."""
    forgive_lost_output()
    try:
        status = run(RankJob.read(Path(sys.argv[1])))
    except CommandError as error:
        _say_failure(str(error))
        os._exit(error.exit_status)
    sys.stdout.flush()
    sys.stderr.flush()
    # Python's own exit would send SIGTERM to the loader workers, which ignore it, and wait for them. They end with us.
    os._exit(status)


def run(job: RankJob) -> int:
    """Train to the end, or until a stop is requested; of a sweep, until the loss has diverged.

    Returns:
        The exit status.
    """
    config = parse_config(job.config, "the launcher's job")
    folder = RunFolder(Path(job.run_folder))
    log = RunLog(folder.log, attempt=job.attempt, every_batches=config.logging.every_batches)
    board = Board.inherited()
    stop = StopRequest(on_stop=lambda batch: log.write("stopped", batch=batch), board=board)
    stop.listen()
    use_own_blocks()
    if config.system.deterministic:
        reproducibility.configure_deterministic_mode()
    device = _promised_device(job)
    try:
        dist.initialize_dist(device, timeout=config.system.dist_timeout_seconds)
    except RuntimeError as error:
        if not is_port_taken(str(error)):
            raise
        os._exit(EXIT_PORT_TAKEN)
    reproducibility.seed_all(config.seed)
    heartbeat = Heartbeat(board, dist.get_global_rank(), compiles=config.system.compile)
    if job.sweep:
        return _sweep(job.sweep, config, job, device, stop, heartbeat)
    if job.replay:
        return _replay(config, job, device, stop, heartbeat)
    guard, random_state = LossGuard(), RandomStateOnResume()
    best = BestCheckpoint(folder.path, folder.path / "checkpoints")

    mirror = RunMirror.of_job(job.mirror, folder, job.generation) if job.mirror else None

    def on_saved(saved: Saved) -> None:
        figures = {name: round(value, 3) for name, value in asdict(saved).items() if value is not None}
        log.write("checkpoint", **figures)
        if mirror:
            mirror.push_files_if_it_answers()

    checkpoints = Checkpoints(
        config.checkpoint,
        folder.checkpoints,
        folder.staging,
        make_payload(job.config, job.classes, job.identity),
        random_state,
        stop,
        _pace(config, folder),
        averaged=average_in_model,
        may_save=guard.finite,
        keep_last=1 if mirror else max(config.checkpoint.keep, LEAST_KEPT),
        upload=Uploads(mirror, config.checkpoint.patience_seconds).upload if mirror else None,
        idle=mirror.end_if_lease_is_lost if mirror else None,
        on_written=lambda record: best.saved(record.batch, record.epoch),
        on_saved=on_saved,
        validates=partial(config.evaluation.is_due, epochs=config.schedule.epochs),
    )
    is_first = dist.get_global_rank() == 0
    trainer = build_trainer(
        config,
        job,
        device,
        heartbeat=heartbeat,
        callbacks=[guard, stop, best, checkpoints, random_state, *_gpu_metrics(config, job, is_first=is_first)],
        loggers=[log, _console(config, job, folder), *_outside(config, job, folder)] if is_first else [],
    )
    random_state.trainer = trainer
    if mirror and is_first and (resumed := _resumed(job, folder)):
        checkpoints.upload(resumed)
    status = _fit(trainer, folder, job, is_first=is_first, finish=checkpoints.finish)
    heartbeat.finishing()
    trainer.close()
    if status == EXIT_DONE and is_first:
        values = {name: float(value) for name, value in trainer.state.eval_metric_values.items()}
        batch = trainer.state.timestamp.batch.value
        log.write("done", batch=batch, **values)
        write_json(
            folder.result, {"batches": batch, "epochs": config.schedule.epochs} | values | _totals(config, folder)
        )
    return status


def _resumed(job: RankJob, folder: RunFolder) -> CheckpointRecord | None:
    """The record of the checkpoint that this start continues from."""
    name = Path(job.checkpoint or "").name
    return next((record for record in folder.checkpoints.records() if record.basename == name), None)


def _pace(config: TrainConfig, folder: RunFolder) -> SavePace | None:
    if config.checkpoint.every_seconds is None:
        return None
    history = history_of(read_events(folder.log)[0])
    return SavePace(config.checkpoint.every_seconds, len(history.starts), history.hours * 3600)


def _totals(config: TrainConfig, folder: RunFolder) -> dict[str, Any]:
    """What the whole run took, over all its starts, and its best validation."""
    history = history_of(read_events(folder.log)[0])
    price, rate = config.logging.dollars_per_hour, history.images_per_second
    return {
        "starts": len(history.starts),
        "hours": round(history.hours, 4),
        "images_per_second": round(rate, 1) if rate else None,
        "dollars": round(history.hours * price, 2) if price else None,
        "best": read_object(folder.path / "best.json"),
    }


def _console(config: TrainConfig, job: RankJob, folder: RunFolder) -> Console:
    batches_per_epoch = job.train.samples // config.global_batch_size
    outlook = Outlook(
        work_left=partial(remaining_work, config, batches_per_epoch),
        dollars_per_hour=config.logging.dollars_per_hour,
        seconds_before=history_of(read_events(folder.log)[0]).hours * 3600,
    )
    return Console(every_batches=config.logging.print_every_batches, epochs=config.schedule.epochs, outlook=outlook)


def _outside(config: TrainConfig, job: RankJob, folder: RunFolder) -> list[LoggerDestination]:
    wandb = config.logging.wandb
    return outside_loggers(
        wandb.model_dump() if wandb else None,
        tensorboard=config.logging.tensorboard,
        folder=folder.path,
        settings=job.config,
        group=job.experiment,
    )


def _gpu_metrics(config: TrainConfig, job: RankJob, *, is_first: bool) -> list[GPUMetrics]:
    tool = shutil.which("nvidia-smi")
    return [GPUMetrics(tool, config.logging.every_batches)] if is_first and tool and job.device == "gpu" else []


def _sweep(
    sweep: Sweep, config: TrainConfig, job: RankJob, device: Device, stop: StopRequest, heartbeat: Heartbeat
) -> int:
    """Train with a rising learning rate, and write the losses as the run's result. No checkpoint is written.

    Returns:
        The exit status.
    """
    folder, is_first = RunFolder(Path(job.run_folder)), dist.get_global_rank() == 0
    rates = LearningRateSweep(sweep, stop, print_every_batches=config.logging.print_every_batches if is_first else None)
    trainer = build_trainer(config, job, device, heartbeat=heartbeat, callbacks=[stop], sweep=rates)
    status = _fit(trainer, folder, job, is_first=is_first)
    heartbeat.finishing()
    trainer.close()
    if status == EXIT_DONE and is_first:
        write_json(folder.result, {"losses": rates.losses})
    return status


def _replay(config: TrainConfig, job: RankJob, device: Device, stop: StopRequest, heartbeat: Heartbeat) -> int:
    """Train the batches after the job's checkpoint, and write their losses as the result. Nothing else is written.

    Returns:
        The exit status.
    """
    assert job.until_batch is not None
    folder, is_first = RunFolder(Path(job.run_folder)), dist.get_global_rank() == 0
    print_every_batches = config.logging.print_every_batches if is_first else None
    replayed = ReplayedLosses(stop, job.until_batch, print_every_batches=print_every_batches)
    random_state = RandomStateOnResume()
    trainer = build_trainer(config, job, device, heartbeat=heartbeat, callbacks=[stop, replayed, random_state])
    random_state.trainer = trainer
    status = _fit(trainer, folder, job, is_first=is_first)
    heartbeat.finishing()
    trainer.close()
    if status == EXIT_DONE and is_first:
        write_json(folder.result, {"losses": replayed.losses, "machine": machine(on_gpu=job.device == "gpu")})
    return status


def _promised_device(job: RankJob) -> Device:
    """The device that the launcher chose, as Composer names it. Torch would quietly compute on the processor where it
    cannot use a GPU, at the price of the GPU; its reason is said instead."""
    if job.device == "cpu":
        return get_device("cpu")
    local_rank = int(os.environ["LOCAL_RANK"])
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call] # torch's
        usable = torch.cuda.device_count()
    except Exception as error:  # torch raises several kinds: no CUDA in this build, no driver, too old a driver
        reason = " ".join(str(error).split())
    else:
        if local_rank < usable:
            return get_device("gpu")
        reason = f"it sees {usable}"
    print(
        f"imagenet-mds: rank {local_rank} cannot use its GPU, torch says: {reason.rstrip('.')}. Update the driver or "
        f"install torch for it, or pass system.device=cpu",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_USER)


def _fit(
    trainer: Trainer, folder: RunFolder, job: RankJob, *, is_first: bool, finish: Callable[[], None] = lambda: None
) -> int:
    """Train to the end, or until a stop is requested; call `finish`, which waits for what was saved; return the exit
    status. Errors that the other ranks do not share end the process at once: closing the trainer would wait for them,
    while they wait for this rank."""
    try:
        status = _train(trainer, job, is_first=is_first)
        finish()
    except CommandError as error:
        _say_failure(_without_traceback(error))
        os._exit(error.exit_status)
    except Exception as error:  # the rank ends here whatever the error, or the other ranks would wait for it
        os._exit(_explain(error, folder))
    return status


def _train(trainer: Trainer, job: RankJob, *, is_first: bool) -> int:
    """Train to the end, or until a stop is requested or the loss is lost; return the exit status."""
    try:
        assert trainer.state.max_duration is not None
        if trainer.state.timestamp < trainer.state.max_duration:
            trainer.fit()
        elif trainer.state.evaluators:  # killed after the last checkpoint, before the result
            trainer.eval()
        # An epoch that ended on the way was validated already; the values are those of this start alone.
        if job.until_batch and trainer.state.evaluators and not trainer.state.eval_metric_values:
            trainer.eval(subset_num_batches=1)
    except StopRequested:
        return EXIT_STOPPED
    except NotFinite as error:
        if is_first:
            _say_failure(str(error))
        return EXIT_LASTING
    return EXIT_DONE


def _explain(error: Exception, folder: RunFolder) -> int:
    """Print what ended this rank, and return its exit status. What is known is one line, and the traceback goes to the
    rank's log; the first rank's output is the user's screen."""
    rank = dist.get_global_rank()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    known = _full_disk(folder) if full else _out_of_memory(error, rank) or worker_failure(str(error), rank)
    lost = dist.get_world_size() > 1 and is_peer_lost(str(error))
    if rank == 0 and (known or lost):
        with contextlib.suppress(OSError), open(folder.path / "rank0.log", "a", encoding="utf-8") as log:
            traceback.print_exc(file=log)
    else:
        traceback.print_exc()
    if known:
        _say_failure(known)
    elif not lost:
        _explain_to_launcher(" ".join(f"{type(error).__name__}: {error}".split()))
    sys.stderr.flush()
    if full:
        return EXIT_LASTING
    return EXIT_PEER_LOST if lost and not known else EXIT_FAILED


def _say_failure(message: str) -> None:
    print(f"imagenet-mds: {message}", file=sys.stderr, flush=True)
    _explain_to_launcher(message)


def _explain_to_launcher(message: str) -> None:
    """Have the launcher know why this rank fails; the first rank's output is the screen, which it does not see."""
    Board.inherited().explain(int(os.environ.get("RANK", "0")), message)


def _full_disk(folder: RunFolder) -> str:
    free = shutil.disk_usage(folder.path).free / 1e9
    return (
        f"{folder.path} cannot be written, its disk is full ({free:,.2f} GB free): make room and run the same command "
        f"again"
    )


def _out_of_memory(error: Exception, rank: int) -> str | None:
    """What to change if an error says that the GPU has too little memory."""
    if not isinstance(error, torch.OutOfMemoryError):
        return None
    return (
        f"rank {rank} ran out of GPU memory: pass a smaller system.device_microbatch_size with another --run-name, as "
        f"it changes results, or system.activation_checkpointing=true, which does not and takes a third more time"
    )


def _without_traceback(error: CommandError) -> str:
    """The message alone; torch puts the traceback of a loader worker in front of it."""
    message = str(error)
    if "Traceback (most recent call last)" in message:
        return message.rstrip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return message
