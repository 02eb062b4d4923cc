"""A prepared run in words, for `--plan` and for the start of `train`. Imports no torch."""

from typing import Any

from imagenet_mds.process.gpus import gpus
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.words import counted, duration
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.config.workers import workers_of
from imagenet_mds_train.nodes.place import Nodes
from imagenet_mds_train.run.estimate import in_words
from imagenet_mds_train.run.fit import device_of
from imagenet_mds_train.run.microbatch import AUTO
from imagenet_mds_train.run.start import Start


def describe(start: Start) -> list[tuple[str, str]]:
    """The run as (name, value) rows: its dataset, recipe, device and place to start at."""
    config, total = start.config, start.batches_per_epoch * start.config.schedule.epochs
    return [
        ("run", start.run.address or str(start.run.path.absolute())),
        ("dataset", f"{start.dataset.location} ({start.train.info.fingerprint})"),
        *([("fetched to", str(start.dataset.cache))] if start.dataset.cache else []),
        (
            "training images",
            f"{start.train_samples:,} of {start.train.info.samples:,} in {len(start.classes)} classes",
        ),
        ("validation images", f"{start.val_samples:,}" if start.val else "none, as evaluation.every_epochs says"),
        ("model", f"ResNet-{config.model.depth} at {_sizes(config)} px"),
        ("device", _device(start) + ("; deterministic" if config.system.deterministic else "")),
        *([("nodes", _nodes(start.nodes))] if start.nodes else []),
        ("loader", _loader(start)),
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


def _device(start: Start) -> str:
    config, here = start.config, start.ranks_here
    if device_of(config) == "gpu":
        return f"{here} of {gpus()} GPUs" if gpus() else counted(here, "GPU")
    return "CPU, as system.device says" if config.system.device == "cpu" else "CPU: there is no GPU here"


def _nodes(nodes: Nodes) -> str:
    return f"{nodes.count}, this is node {nodes.rank}; they meet at {nodes.host}:{nodes.port}"


def _loader(start: Start) -> str:
    """The loader's workers, and where their number comes from."""
    asked = start.config.data.workers_per_rank
    words = f"{counted(workers_of(asked, start.ranks_here), 'worker')} of each rank"
    return f"{words}, its share of {counted(usable_processors(), 'processor')} here" if asked == "auto" else words


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
    given = config.checkpoint
    often = [f"every {given.every_seconds:g} s" if given.every_seconds else None]
    often.append(f"every {given.every_batches:,} batches" if given.every_batches else None)
    return f"{', '.join(one for one in (*often, 'each epoch') if one)}; {given.keep} kept"


def _place(start: Start, total: int) -> str:
    """Where the training starts or continues, of a number of batches."""
    if start.checkpoint is None:
        return "0"
    record = start.checkpoint
    batches, seconds = _lost(start.run.events(), record.batch)
    words = f"{counted(batches, 'batch', 'batches')} lost, {duration(seconds / 3600)} of training"
    lost = words if batches else "no batch lost"
    seen = record.batch * start.config.global_batch_size
    return f"batch {record.batch:,} of {total:,}, epoch {record.epoch + 1}, {seen:,} images seen; {lost}"


def _lost(events: list[dict[str, Any]], saved_batch: int) -> tuple[int, float]:
    """The batches after a checkpoint that the last start has logged, and the seconds that they took."""
    trained = [event for event in events if event["event"] in ("start", "batch")]
    if not trained:
        return 0, 0.0
    last = [event for event in trained if event["attempt"] == trained[-1]["attempt"]]
    after = [event for event in last if event["batch"] > saved_batch]
    if not after:
        return 0, 0.0
    before = [event for event in last if event["batch"] <= saved_batch] or last
    # A clock that was set back takes no time away.
    return after[-1]["batch"] - saved_batch, max(after[-1]["time"] - before[-1]["time"], 0.0)
