"""The one place that makes a Composer Trainer: loaders, model, recipe, and what is always measured."""

import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from composer import Trainer
from composer.core import Callback, Evaluator, Event, State
from composer.devices import Device
from composer.loggers import LoggerDestination
from composer.utils import dist

from imagenet_mds.errors import UserError
from imagenet_mds_train.augment.mixing import Mixing
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data.device import DeviceLoader, finish_batch
from imagenet_mds_train.data.loaders import counts_of, training_loader, validation_loader
from imagenet_mds_train.data.numbered import NumberedBatches
from imagenet_mds_train.interruption.heartbeat import Heartbeat
from imagenet_mds_train.loggers.throughput import Throughput
from imagenet_mds_train.loggers.training_accuracy import TrainingAccuracy
from imagenet_mds_train.loop import Loop
from imagenet_mds_train.model.build import build_model, compile_network, precision_on
from imagenet_mds_train.model.memory import checkpoint_activations
from imagenet_mds_train.model.weights import take_pretrained, take_weights
from imagenet_mds_train.recipe.algorithms import build_algorithms
from imagenet_mds_train.recipe.distributed import OneModel
from imagenet_mds_train.recipe.optimizer import build_optimizer
from imagenet_mds_train.recipe.schedule import LearningRate
from imagenet_mds_train.run.job import RankJob
from imagenet_mds_train.sweep.callback import LearningRateSweep


def build_trainer(
    config: TrainConfig,
    job: RankJob,
    device: Device,
    *,
    heartbeat: Heartbeat | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[LoggerDestination] = (),
    sweep: LearningRateSweep | None = None,
) -> Trainer:
    """The trainer of one rank, ready to fit, at the job's checkpoint if it names one.

    The process must have its random seed and, with several ranks, its process group by now.

    Args:
        config: the run's.
        job: the data, the classes and the checkpoint.
        device: as Composer names it.
        heartbeat: says how far the rank is; None where nobody looks.
        callbacks: run after those that are always there, in this order.
        loggers: destinations of what is logged.
        sweep: takes the place of the schedule and its epochs; None for a run.
    """
    torch_device = torch.device("cuda", torch.cuda.current_device()) if device.name == "gpu" else torch.device("cpu")
    mixing = Mixing(config.algorithms, len(job.classes), config.seed)
    train, val = _build_loaders(config, job, torch_device, mixing)
    if heartbeat:
        for loader in (train, val):
            if loader:
                loader.on_batch = heartbeat.batch_came
    model = build_model(config, len(job.classes))
    if job.weights and job.pretrained:
        for note in take_pretrained(model, Path(job.weights), job.classes):
            if dist.get_global_rank() == 0:
                print(f"note: {note}", file=sys.stderr, flush=True)
    elif job.weights:
        take_weights(model, Path(job.weights), job.classes)
    if config.system.activation_checkpointing:
        checkpoint_activations(model.network)
    if config.system.compile:
        compile_network(model.network, sizes=len({config.size_at(epoch) for epoch in range(config.schedule.epochs)}))
    schedule, precision = config.schedule, precision_on(torch_device.type, config)
    until_batch = sweep.sweep.batches if sweep else job.until_batch
    learning_rate = sweep or LearningRate(
        config.lr,
        warmup_batches=round(schedule.warmup_epochs * len(train)),
        total_batches=schedule.epochs * len(train),
        final_fraction=schedule.final_lr_fraction,
    )
    log_every = config.logging.every_batches
    throughput = Throughput(config.global_batch_size, log_every, partial(counts_of, train, val))
    with _whole_restore(job):
        return Loop(
            model=model,
            train_dataloader=train,
            eval_dataloader=Evaluator(label="val", dataloader=val) if val else None,
            eval_interval=partial(_validates, config),
            max_duration=f"{until_batch}ba" if until_batch else f"{schedule.epochs}ep",
            optimizers=build_optimizer(config.optimizer, model, config.lr, config.algorithms.sam),
            algorithms=build_algorithms(
                config.algorithms,
                epochs=schedule.epochs,
                fp16=precision == "amp_fp16",
                deterministic=config.system.deterministic,
                log_every_batches=log_every,
            ),
            callbacks=[
                NumberedBatches(train, mixing, log_every),
                OneModel(),
                learning_rate,
                throughput,
                TrainingAccuracy(log_every),
                *([heartbeat] if heartbeat else []),
                *callbacks,
            ],
            loggers=list(loggers),
            device=device,
            precision=precision,
            device_train_microbatch_size=config.device_microbatch_size,
            deterministic_mode=config.system.deterministic,
            seed=config.seed,
            dist_timeout=config.system.dist_timeout_seconds,
            run_name=job.run_name,
            load_path=_plain_path(job.checkpoint) if job.checkpoint else None,
            load_progress_bar=False,
            progress_bar=False,
            auto_log_hparams=False,
            # The sample order resumes by itself; spinning would only advance the validation loaders.
            spin_dataloaders=False,
        )


@contextmanager
def _whole_restore(job: RankJob) -> Iterator[None]:
    """Composer only warns where a checkpoint lacks the state of the optimizer or of an average, and goes on without it.

    Raises:
        UserError: it does.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r"\s*(SGD|DecoupledSGD|SAM|EMA|SWA) is not in the state_dict")
        try:
            yield
        except UserWarning as warning:
            raise UserError(
                f"{job.checkpoint} cannot be continued ({' '.join(str(warning).split())}): it is of an earlier version "
                f"or was changed. Continue it with the version that wrote it, or start a new run from its weights with "
                f"--run-name and --from-checkpoint {job.checkpoint}"
            ) from None


def _validates(config: TrainConfig, state: State, event: Event) -> bool:
    """Whether Composer validates now. An epoch that ends is counted by then."""
    return event == Event.EPOCH_END and config.evaluation.is_due(state.timestamp.epoch.value, config.schedule.epochs)


def _plain_path(checkpoint: str) -> str:
    """A link to a checkpoint in the attempt's temporary folder. Composer takes a path for a URI and a format string, so
    that one with `#`, `?`, braces or a leading `//` names another file."""
    link = Path(tempfile.mkdtemp()) / "checkpoint.pt"
    link.symlink_to(Path(checkpoint).resolve())
    return str(link)


def _build_loaders(
    config: TrainConfig, job: RankJob, device: torch.device, mixing: Mixing
) -> tuple[DeviceLoader, DeviceLoader | None]:
    """This rank's training and validation batches; None where the run never validates."""
    classes = len(job.classes)
    train = training_loader(
        config,
        job.train.shard_cache(),
        job.train.samples,
        finish=partial(finish_batch, device=device, classes=classes, mixing=mixing),
        device=device,
    )
    if job.val is None:
        return train, None
    val = validation_loader(
        config.evaluation,
        job.val.shard_cache(),
        job.val.samples,
        rank=dist.get_global_rank(),
        ranks=dist.get_world_size(),
        replace_damaged=config.data.damaged == "black",
        finish=partial(finish_batch, device=device, classes=classes, mixing=None),
        device=device,
    )
    return train, val
