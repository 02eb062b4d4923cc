"""ImageNet from the gated Hugging Face hub: `hf://imagenet-1k`, fetched a file at a time, of the split asked for alone.

The files stay in huggingface_hub's own cache (`HF_HOME`), at one revision, and are then read as local ones; a run that
was stopped goes on with those that are there.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.progress import ProgressLine
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.sources.base import Sample
from imagenet_mds_convert.sources.parquet import NEEDS_HF, ParquetSource, select_files

_PREFIXES = ("hf://datasets/", "hf://", "huggingface:")
_OWNER = "ILSVRC"


def is_hub(location: str) -> bool:
    """Whether a location is on the hub."""
    return location.startswith(_PREFIXES)


def open_hub(location: str) -> "HubSource":
    """Ask the hub which files there are; none is fetched yet.

    Raises:
        UserError: huggingface_hub is not installed, there is no token, or it opens nothing; no such files.
        WorldError: the hub does not answer.
    """
    repo = next(location.removeprefix(prefix) for prefix in _PREFIXES if location.startswith(prefix)).strip("/")
    repo = repo if "/" in repo else f"{_OWNER}/{repo}"
    try:
        import huggingface_hub
        import pyarrow  # noqa: F401 # better now than after a download
    except ImportError:
        raise UserError(NEEDS_HF) from None
    if not huggingface_hub.get_token():
        raise UserError(
            f"{location} is gated: accept its terms at https://huggingface.co/datasets/{repo}, make a token that reads "
            f"at https://huggingface.co/settings/tokens, and set HF_TOKEN to it"
        )
    with _explained(repo):
        info = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(repo, files_metadata=True)
    files = select_files([file.rfilename for file in info.siblings or ()])
    if not files or not info.sha:
        raise UserError(f"{location} has no train-*-of-*.parquet or validation-*-of-*.parquet")
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    snapshot = cache / f"datasets--{repo.replace('/', '--')}" / "snapshots" / info.sha
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return HubSource(LocalStorage(snapshot), files, repo=repo, revision=info.sha, sizes_bytes=sizes)


@dataclass(frozen=True)
class HubSource(ParquetSource):
    """A repository of the hub at one revision; `sizes_bytes` of its files, as the hub says."""

    repo: str = ""
    revision: str = ""
    sizes_bytes: dict[str, int] = field(default_factory=dict, hash=False)

    def samples(self, split: str) -> list[Sample]:
        """Fetch the files of the split, one after the other, then list them.

        Raises:
            UserError: as `ParquetSource.samples`; the token does not open the files; the disk has no room for them.
            WorldError: a file cannot be fetched.
        """
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        files = self.split_files(split)
        self._refuse_small_disk(files)
        with ProgressLine(f"fetching {split}", len(files), "files") as progress:
            for name in files:
                with _explained(self.repo):
                    huggingface_hub.hf_hub_download(
                        self.repo,
                        name,
                        repo_type="dataset",
                        revision=self.revision,
                        endpoint=os.environ.get("HF_ENDPOINT"),
                        cache_dir=Path(self.storage.location).parents[2],
                    )
                progress.advance(1)
        return super().samples(split)

    def _refuse_small_disk(self, files: Sequence[str]) -> None:
        cache = LocalStorage(Path(self.storage.location).parents[2])
        needed = sum(self.sizes_bytes.get(name, 0) for name in files if self.storage.size_bytes(name) is None)
        if needed > (free := cache.free_bytes()):
            raise UserError(
                f"{self.repo} would take {needed / 1e9:,.1f} GB more in {cache.location}, whose disk has "
                f"{free / 1e9:,.1f} GB free: set HF_HOME to a folder on a larger disk"
            )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """The hub's errors in a person's words."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repo} is gated and the token in HF_TOKEN does not open it: accept its terms at "
            f"https://huggingface.co/datasets/{repo} with the token's account"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub knows no dataset {repo}, or the token in HF_TOKEN is not valid: check both") from None
    except (HfHubHTTPError, OSError) as error:  # a connection that fails is an OSError
        raise WorldError(
            f"{repo} cannot be fetched: {error}. What is fetched stays: run the same command again"
        ) from error
