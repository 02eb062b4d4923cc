"""A prepared run in words, for `--plan` and for the start of `train`. Imports no torch."""

from imagenet_mds.process.gpus import gpus
from imagenet_mds.words import counted
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.estimate import in_words
from imagenet_mds_train.run.microbatch import AUTO
from imagenet_mds_train.run.start import Start, device_of


def describe(start: Start) -> list[tuple[str, str]]:
    """The run as (name, value) rows: its dataset, recipe, device and place to start at."""
    config, total = start.config, start.batches_per_epoch * start.config.schedule.epochs
    return [
        ("run", str(start.run.path.absolute())),
        ("dataset", f"{start.dataset.location} ({start.train.info.fingerprint})"),
        *([("fetched to", str(start.dataset.cache))] if start.dataset.cache else []),
        (
            "training images",
            f"{start.train_samples:,} of {start.train.info.samples:,} in {len(start.classes)} classes",
        ),
        ("validation images", f"{start.val_samples:,}" if start.val else "none, as evaluation.every_epochs says"),
        ("model", f"ResNet-{config.model.depth} at {_sizes(config)} px"),
        ("device", _device(config) + ("; deterministic" if config.system.deterministic else "")),
        ("batch", _batch(config)),
        ("steps", f"{total:,} = {config.schedule.epochs} epochs x {start.batches_per_epoch:,}"),
        ("learning rate", f"{_lr(config)}, warm-up {config.schedule.warmup_epochs:g} epochs, cosine"),
        ("algorithms", _algorithms(config)),
        ("checkpoints", _checkpoints(config)),
        ("starts at", _place(start, total)),
        *([("weights", f"those of {start.fork.checkpoint}")] if start.fork and not start.checkpoint else []),
    ]


def estimates(start: Start) -> list[tuple[str, str]]:
    """What the run takes, as (name, value) rows, as far as it is known."""
    return in_words(start.config, start.batches_per_epoch, start.val_samples)


def _sizes(config: TrainConfig) -> str:
    """The training sizes in pixels, as far as they change."""
    first, last = config.size_at(0), config.augment.size_px
    return f"{last}" if first == last else f"{first} to {last}"


def _device(config: TrainConfig) -> str:
    if device_of(config) == "gpu":
        return f"{config.ranks} of {gpus()} GPUs" if gpus() else counted(config.ranks, "GPU")
    return "CPU, as system.device says" if config.system.device == "cpu" else "CPU: there is no GPU here"


def _batch(config: TrainConfig) -> str:
    """The images of a step, and how they are split."""
    whole = f"{config.global_batch_size} = {counted(config.ranks, 'rank')} x {config.device_batch_size}"
    if config.system.device_microbatch_size == AUTO:
        return f"{whole}, in the largest parts that fit the GPU"
    part = config.device_microbatch_size
    return f"{whole}, in parts of {part}" if part < config.device_batch_size else whole


def _lr(config: TrainConfig) -> str:
    """The learning rate, and how it comes from that of the configuration."""
    given = config.optimizer
    if given.lr_batch_size is None:
        return f"{config.lr:g}"
    return f"{config.lr:g} = {given.lr:g} x {config.global_batch_size:,} / {given.lr_batch_size:,} images"


def _algorithms(config: TrainConfig) -> str:
    on = [name for name, value in config.algorithms.model_dump().items() if value]
    if config.augment.randaugment:
        on.append("randaugment")
    return ", ".join(on) or "none"


def _checkpoints(config: TrainConfig) -> str:
    every = config.checkpoint.every_batches
    return f"{f'every {every:,} batches and ' if every else ''}each epoch, {config.checkpoint.keep} kept"


def _place(start: Start, total: int) -> str:
    """Where the training starts or continues, of a number of batches."""
    if start.checkpoint is None:
        return "0"
    return f"batch {start.checkpoint.batch:,} of {total:,}, epoch {start.checkpoint.epoch + 1}"
