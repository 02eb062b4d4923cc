"""`imagenet-mds aws launch`: rent a machine that trains a phase."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.aws.options import IMAGENET_IMAGES, IMAGENET_VAL_IMAGES, DryRun, Name, Region, Yes, ask, stack_of
from imagenet_mds.cli.options import Overrides
from imagenet_mds.cli.tables import print_columns, print_line, print_note
from imagenet_mds.errors import EXIT_FAILED, UserError
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from imagenet_mds_infra.prices import InstanceType, Offer
    from imagenet_mds_infra.stack import Stack
    from imagenet_mds_train.config.schema import TrainConfig

_SNAPSHOT = "snap-"
_IMAGE_GB = 0.114e-3
"""An image of ImageNet in a shard."""

_USABLE = 0.85
"""Of an instance's disks; the rest is for the program, checkpoints and the file system."""

_TRAIN_SHARE = 0.95
"""Of the bytes; the limit of the cache is one of each split."""


def launch(
    overrides: Overrides = None,
    phase: Annotated[str, typer.Option(metavar="2|3", help="Phase to train.")] = "3",
    data: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="s3:// address of a converted dataset, or snap-... of a filled volume."),
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Spot instances: cheaper, may be taken away.")] = False,
    run_name: Annotated[str | None, typer.Option(help="Name of the run; phaseN by default.")] = None,
    instance_type: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="Type to rent, may be given several times.")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Weights that a new run starts from, as in `train`; a file here is uploaded."
        ),
    ] = None,
    max_dollars: Annotated[
        float | None, typer.Option(min=0.01, help="Budget over all instances of the run; it is saved and ended then.")
    ] = None,
    max_hours: Annotated[float | None, typer.Option(min=0.01, help="Hours over all instances of the run.")] = None,
    wait_minutes: Annotated[float, typer.Option(min=0.0, help="How long to wait for an instance.")] = 5.0,
    name: Name = "imagenet-mds",
    region: Region = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Rent a machine that trains a phase until the run is done.

    An interruption is continued by the next machine. Shows what it costs in each zone first, and asks. The same command
    again continues a run.
    """
    from imagenet_mds_infra.group import wait_for_instance
    from imagenet_mds_infra.launches import Launch, refuse_name, upload_weights
    from imagenet_mds_infra.launches import launch as start
    from imagenet_mds_infra.prices import TYPES, offers
    from imagenet_mds_infra.volumes import describe_snapshot, from_snapshot
    from imagenet_mds_train.config.load import load_config

    types = _types(phase, instance_type)
    if data is None or not data.startswith((_SNAPSHOT, "s3://")):
        raise UserError("pass --data s3://BUCKET/mds, where `convert` wrote to, or --data snap-... of a filled volume")
    run = run_name or f"phase{phase}"
    refuse_name("--run-name", run)
    config = load_config(f"phase{phase}", tuple(overrides or ()))
    weights = _weights(pretrained)
    if {one.gpus for one in types} != {config.ranks}:
        gpus = ", ".join(f"{one.name} {one.gpus}" for one in types)
        raise UserError(f"the configuration has {counted(config.ranks, 'rank')}, and GPUs are: {gpus}")
    stack = stack_of(name, region, dry_run)
    found = offers(stack.account, tuple(one.name for one in types), stack.zones())
    if not found:
        names = " or ".join(one.name for one in types)
        raise UserError(f"no zone of {stack.account.region} has {names}: pass --instance-type or --region")
    images, needed_gb = _images(config, data)
    hours = {one.name: _hours(config, images, one.gpu) for one in types}
    _print_offers(found, hours, spot=spot)
    _refuse_quota(stack, found, spot=spot)
    device = None
    if data.startswith(_SNAPSHOT):
        snapshot = describe_snapshot(stack, data)
        device = from_snapshot(stack, snapshot["SnapshotId"], snapshot["VolumeSize"])
    best = found[0]
    price = best.dollars_per_hour(spot=spot)
    _print_ways(needed_gb, best.type.nvme_gb, price)
    nvme_gb = min(TYPES[offer.type.name].nvme_gb for offer in found)
    arguments = ["train", "--phase", phase, *_where(data, needed_gb, nvme_gb), "--save", f"s3://{stack.bucket}/runs"]
    if not dry_run:
        kind = "spot" if spot else "on-demand"
        ask(f"Start {run} on {kind} instances, about ${hours[best.type.name] * price:,.2f}?", yes)
    if weights:
        arguments += ["--pretrained", weights if isinstance(weights, str) else upload_weights(stack, weights)]
    arguments += ["--run-name", run, *(overrides or ())]
    since = time.time()
    wanted = Launch(
        run,
        [*arguments, "--until-done"],
        spot,
        _prices(found, spot=spot),
        max_dollars,
        max_hours,
        first=([*arguments, "--dry-run"],),
        images_per_epoch=images // config.global_batch_size * config.global_batch_size,
    )
    start(stack, wanted, "read-only" if device else "none", device, tuple(one.name for one in types))
    if dry_run:
        return
    print_line(f"{run} is launched: `imagenet-mds aws status {run}` says how far it is")
    instance = wait_for_instance(stack, since, print_note, wait_minutes * 60)
    if instance is None:
        print_note(
            "no instance yet; the group goes on trying, and nothing is paid meanwhile. `imagenet-mds aws stop` ends it"
        )
        raise typer.Exit(EXIT_FAILED)
    kind = instance.get("InstanceType", "an instance")
    print_line(f"{instance['InstanceId']} ({kind}, {instance['AvailabilityZone']}) starts")


def _types(phase: str, names: list[str] | None) -> "list[InstanceType]":
    from imagenet_mds_infra.prices import PHASE_TYPES, TYPES

    if phase not in PHASE_TYPES:
        raise UserError(f"--phase {phase}: pass 2 or 3; phase 1 runs on Colab (infra/colab)")
    wanted = names or PHASE_TYPES[phase]
    if unknown := [one for one in wanted if one not in TYPES]:
        raise UserError(f"--instance-type {unknown[0]}: pass one of {', '.join(TYPES)}")
    return [TYPES[one] for one in wanted]


def _weights(given: str | None) -> Path | str | None:
    """The file of weights here, or the address of one."""
    from imagenet_mds_train.run.find import WEIGHTS

    if given is None or given.startswith("s3://"):
        return given
    file = Path(given)
    if file.suffix not in WEIGHTS or not file.is_file():
        raise UserError(f"--pretrained {given}: pass a file that ends in {', '.join(WEIGHTS)}, or an s3:// address")
    return file


def _where(data: str, needed_gb: float, nvme_gb: int) -> list[str]:
    """The options that name the data. From S3 it is cached on the instance's own disks, as far as they go."""
    if data.startswith(_SNAPSHOT):
        return ["--data", "/data/mds"]
    if needed_gb <= nvme_gb * _USABLE:
        return ["--data", data]
    print_note(
        f"{needed_gb:.0f} GB do not fit an instance with {nvme_gb} GB of disks, so what is evicted is fetched again in "
        f"each epoch: pass data.subset=..., a dataset converted with --max-side 400, or --data snap-..."
    )
    return ["--data", data, "--cache-limit", f"{nvme_gb * _USABLE * _TRAIN_SHARE:.0f}GB"]


def _prices(found: "list[Offer]", *, spot: bool) -> dict[str, float]:
    """Dollars per hour by type, and on spot instances by type and zone."""
    prices = {offer.type.name: offer.type.dollars_per_hour for offer in found}
    if spot:
        prices |= {f"{offer.type.name} {offer.zone}": offer.dollars_per_hour(spot=True) for offer in found}
    return prices


def _images(config: "TrainConfig", data: str) -> tuple[int, float]:
    """Training images of an epoch, and the size of what is read of the dataset in GB."""
    from imagenet_mds.dataset.access import Dataset

    train, val = config.data.subset_samples(), config.evaluation.subset
    if data.startswith("s3://"):
        splits = [Dataset.at(data).split(name).info for name in ("train", "val")]
        counts = [
            min(wanted or split.samples, split.samples) for wanted, split in zip((train, val), splits, strict=True)
        ]
        sizes = [split.size_bytes * count / split.samples for split, count in zip(splits, counts, strict=True)]
        return counts[0], sum(sizes) / 1e9
    images = train or IMAGENET_IMAGES
    return images, (images + (val or IMAGENET_VAL_IMAGES)) * _IMAGE_GB


def _hours(config: "TrainConfig", images: int, gpu: str) -> float:
    from imagenet_mds_train.run.estimate import GPUS, estimate_hours

    batches = images // config.global_batch_size
    return estimate_hours(config, batches, config.evaluation.subset or IMAGENET_VAL_IMAGES, GPUS[gpu]).hours[1]


def _print_offers(found: "list[Offer]", hours: dict[str, float], *, spot: bool) -> None:
    rows = [
        (
            offer.type.name,
            f"{offer.type.gpus} {offer.type.gpu}",
            offer.zone,
            "-" if offer.spot_dollars_per_hour is None else f"{offer.spot_dollars_per_hour:.3f}",
            f"{offer.type.dollars_per_hour:.3f}",
            f"{hours[offer.type.name]:.1f}",
            f"{hours[offer.type.name] * offer.dollars_per_hour(spot=spot):,.2f}",
        )
        for offer in found
    ]
    print_columns(("type", "GPUs", "zone", "$/h spot", "$/h", "hours", "dollars"), rows, right=range(3, 7))
    print_line("hours are reckoned; spot prices are of now, those on demand of us-east-1 in 2025")


def _print_ways(needed_gb: float, nvme_gb: int, price: float) -> None:
    from imagenet_mds_infra.volumes import ways

    rows = [
        (way.name, _range(way.minutes, ".0f"), _range(way.dollars, ".2f"), way.note)
        for way in ways(needed_gb, nvme_gb, price)
    ]
    print()
    print_columns((f"{needed_gb:.0f} GB of data", "minutes", "dollars", ""), rows, right=(1, 2))


def _refuse_quota(stack: "Stack", found: "list[Offer]", *, spot: bool) -> None:
    from imagenet_mds_infra.account import HINTS
    from imagenet_mds_infra.group import vcpu_quota

    quota = vcpu_quota(stack.account, spot=spot)
    smallest = min(offer.type.vcpus for offer in found)
    if quota is not None and quota < smallest:
        raise UserError(f"{quota:g} vCPUs are allowed and {smallest} are needed: {HINTS['VcpuLimitExceeded']}")


def _range(values: tuple[float, float], form: str) -> str:
    low, high = (f"{value:{form}}" for value in values)
    return low if low == high else f"{low} to {high}"
