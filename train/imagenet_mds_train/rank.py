"""One rank of a run, from its order to its end. The launcher starts it; nothing else imports it."""

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from imagenet_mds.config import TrainConfig, parse_config
from imagenet_mds.dataset.decompress import UnpackedSplit
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.errors import EXIT_FAILED, EXIT_STOPPED, CommandError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.atomic import write_json
from imagenet_mds_train.records import RunFolder


@dataclass(frozen=True)
class Order:
    """What the ranks are to do; the launcher writes it as JSON and each rank reads it.

    `train` and `val` are the splits' files, see `files_as_json`; `checkpoint` is where to go on, None at a run's start.
    Sizes are samples, subset applied.
    """

    config: dict[str, Any]
    run_folder: str
    train: dict[str, Any]
    val: dict[str, Any]
    train_samples: int
    val_samples: int
    classes: list[str]
    identity: dict[str, Any]
    checkpoint: str | None
    attempt: int

    def write(self, path: Path) -> None:
        """Write the order for the ranks."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "Order":
        """Read an order that `write` wrote."""
        return cls(**json.loads(path.read_bytes()))


def files_as_json(shard_cache: ShardCache) -> dict[str, Any]:
    """A split's shard_cache in an order."""
    remote = shard_cache.remote.location if shard_cache.remote else None
    packed = isinstance(shard_cache.remote, UnpackedSplit)
    return {
        "folder": str(shard_cache.folder),
        "remote": remote,
        "packed": packed,
        "limit_bytes": shard_cache.limit_bytes,
    }


def files_from_json(value: dict[str, Any]) -> ShardCache:
    """What `files_as_json` wrote."""
    remote = open_storage(value["remote"]) if value["remote"] else None
    return ShardCache(
        Path(value["folder"]), UnpackedSplit(remote) if remote and value["packed"] else remote, value["limit_bytes"]
    )


def main() -> None:
    """Run one rank: `python -c ... ORDER.json`, with torch's distributed environment variables set."""
    status = run(Order.read(Path(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through Python's own end, which sends SIGTERM to the loader workers, who ignore it, and waits for them. They
    # end with us.
    os._exit(status)


def run(order: Order) -> int:
    """Train to the end, or to the order to stop.

    Returns:
        The exit status.
    """
    import torch
    from composer import Trainer
    from composer.core import Evaluator
    from composer.utils import dist, get_device, reproducibility

    from imagenet_mds_train.checkpoints import Checkpoints, RandomStateOnResume, StopRequested
    from imagenet_mds_train.data import counts_of, training_loader, validation_loader
    from imagenet_mds_train.feed import finish_batch
    from imagenet_mds_train.model import Classifier, OneModel, resnet
    from imagenet_mds_train.recipe import build_algorithms, build_optimizer, build_scheduler
    from imagenet_mds_train.runlog import NotFinite, RunLog
    from imagenet_mds_train.stream import use_own_blocks

    config = parse_config(order.config, "the order of the launcher")
    folder = RunFolder(Path(order.run_folder))
    log = RunLog(
        folder.log,
        attempt=order.attempt,
        every_batches=config.logging.every_batches,
        print_every_batches=config.logging.print_every_batches,
        global_batch_size=config.global_batch_size,
    )
    checkpoints = Checkpoints(
        config.checkpoint,
        folder,
        order.identity,
        payload={"config": order.config, "classes": order.classes, "identity": order.identity},
        log=log,
    )
    checkpoints.listen()
    use_own_blocks()
    if config.system.deterministic:
        reproducibility.configure_deterministic_mode()
    device = get_device(None)
    dist.initialize_dist(device, timeout=config.system.dist_timeout_seconds)
    reproducibility.seed_all(config.seed)

    classes = len(order.classes)
    place = torch.device("cuda", torch.cuda.current_device()) if device.name == "gpu" else torch.device("cpu")
    finish = partial(finish_batch, device=place, classes=classes)
    train = training_loader(
        config,
        files_from_json(order.train),
        order.train_samples,
        finish=partial(finish, weightless=config.data.damaged == "black"),
        device=place,
    )
    val = validation_loader(
        config.evaluation,
        files_from_json(order.val),
        order.val_samples,
        rank=dist.get_global_rank(),
        ranks=dist.get_world_size(),
        replace_damaged=config.data.damaged == "black",
        finish=finish,
        device=place,
    )
    smoothing = config.algorithms.label_smoothing.smoothing if config.algorithms.label_smoothing else 0.0
    model = Classifier(resnet(config.model.depth, classes), classes, smoothing)
    log.counts = partial(counts_of, train, val)
    random_state = RandomStateOnResume()
    trainer = Trainer(
        model=model,
        train_dataloader=train,
        eval_dataloader=Evaluator(label="val", dataloader=val),
        eval_interval=f"{config.evaluation.every_epochs}ep",
        max_duration=f"{config.schedule.epochs}ep",
        optimizers=build_optimizer(config.optimizer, model),
        schedulers=build_scheduler(config, len(train)),
        step_schedulers_every_batch=True,
        algorithms=build_algorithms(config.algorithms, deterministic=config.system.deterministic),
        callbacks=[OneModel(), log, checkpoints, random_state],
        device=device,
        precision=_precision(config, device.name),
        device_train_microbatch_size=config.system.device_microbatch_size,
        deterministic_mode=config.system.deterministic,
        seed=config.seed,
        dist_timeout=config.system.dist_timeout_seconds,
        run_name=folder.path.name,
        load_path=order.checkpoint,
        load_progress_bar=False,
        progress_bar=False,
        auto_log_hparams=False,
        # The order comes back by itself; spinning would only move the validation's loaders.
        spin_dataloaders=False,
    )
    random_state.trainer = trainer
    try:
        assert trainer.state.max_duration is not None
        if trainer.state.timestamp < trainer.state.max_duration:
            trainer.fit()
        else:  # killed after its last checkpoint, before its result
            trainer.eval()
    except StopRequested:
        trainer.close()
        return EXIT_STOPPED
    except NotFinite as error:
        if dist.get_global_rank() == 0:
            print(f"imagenet-mds: {error}", file=sys.stderr, flush=True)
        trainer.close()
        return EXIT_FAILED
    except CommandError as error:
        print(f"imagenet-mds: {_without_traceback(error)}", file=sys.stderr, flush=True)
        os._exit(error.exit_status)
    except Exception:
        # At once, and not through the trainer's closing: that waits for the other ranks, who wait for this one.
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_FAILED)
    trainer.close()
    if dist.get_global_rank() == 0:
        values = {name: float(value) for name, value in trainer.state.eval_metric_values.items()}
        batch = trainer.state.timestamp.batch.value
        log.write("done", batch=batch, **values)
        write_json(folder.result, {"batches": batch, "epochs": config.schedule.epochs} | values)
    return 0


def _without_traceback(error: CommandError) -> str:
    """The message; torch puts the traceback of a loader worker before it."""
    message = str(error)
    if "Traceback (most recent call last)" in message:
        return message.rstrip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return message


def _precision(config: TrainConfig, device: str) -> str:
    """The precision as Composer names it. `auto` is fp16 on a GPU: a T4 only emulates bf16, and says it has it."""
    if config.system.precision != "auto":
        return config.system.precision
    return "amp_fp16" if device == "gpu" else "fp32"
