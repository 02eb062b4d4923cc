"""`imagenet-mds aws worker`: what an instance does; not for people."""

import os

import typer

from imagenet_mds.cli.aws.options import account_of
from imagenet_mds.errors import UserError


def worker() -> None:
    """Do what this instance was launched for. The unit that `infra/aws` installs runs this."""
    from imagenet_mds_infra.worker import worker as worker_of

    names = ("IMAGENET_MDS_NAME", "IMAGENET_MDS_BUCKET", "IMAGENET_MDS_LAUNCH")
    missing = [one for one in names if not os.environ.get(one)]
    if missing:
        raise UserError(f"{missing[0]} is not set: this command runs on an instance that `launch` started")
    name, bucket, key = (os.environ[one] for one in names)
    run = key.removeprefix("launches/").removesuffix(".json")
    account = account_of(name, os.environ.get("AWS_REGION"), dry_run=False)
    raise typer.Exit(worker_of(account, bucket, run, lambda line: print(line, flush=True)).work())
