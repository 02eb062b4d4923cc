"""One rank of a run, from its order to its end. The launcher starts it; nothing else imports it."""

import os
import sys
import traceback
from functools import partial
from pathlib import Path

from imagenet_mds.errors import EXIT_FAILED, EXIT_STOPPED, CommandError
from imagenet_mds.storage.atomic import write_json
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.job import RankJob, shard_cache_from_json


def main() -> None:
    """Run one rank: `python -c ... ORDER.json`, with torch's distributed environment variables set."""
    status = run(RankJob.read(Path(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through Python's own end, which sends SIGTERM to the loader workers, who ignore it, and waits for them. They
    # end with us.
    os._exit(status)


def run(order: RankJob) -> int:
    """Train to the end, or to the order to stop.

    Returns:
        The exit status.
    """
    import torch
    from composer import Trainer
    from composer.core import Evaluator
    from composer.utils import dist, get_device, reproducibility

    from imagenet_mds_train.checkpoints.random_state import RandomStateOnResume
    from imagenet_mds_train.checkpoints.saver import Checkpoints
    from imagenet_mds_train.data.device import finish_batch
    from imagenet_mds_train.data.loaders import counts_of, training_loader, validation_loader
    from imagenet_mds_train.data.stream import use_own_blocks
    from imagenet_mds_train.interruption.stop import StopRequested
    from imagenet_mds_train.loggers.loss_guard import NotFinite
    from imagenet_mds_train.loggers.run_log import RunLog
    from imagenet_mds_train.model.classifier import Classifier
    from imagenet_mds_train.model.resnet import resnet
    from imagenet_mds_train.recipe.algorithms import build_algorithms
    from imagenet_mds_train.recipe.distributed import OneModel
    from imagenet_mds_train.recipe.optimizer import build_optimizer
    from imagenet_mds_train.recipe.schedule import build_scheduler

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
        shard_cache_from_json(order.train),
        order.train_samples,
        finish=partial(finish, weightless=config.data.damaged == "black"),
        device=place,
    )
    val = validation_loader(
        config.evaluation,
        shard_cache_from_json(order.val),
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
