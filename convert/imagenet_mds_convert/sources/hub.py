"""ImageNet from the gated Hugging Face hub: `hf://imagenet-1k`. Only files of the split in question are downloaded.

The files are kept in huggingface_hub's own cache (`HF_HOME`), at one revision, and read there. A run that was stopped
continues with the files that are missing.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SPLITS, SplitName
from imagenet_mds_convert.sources.base import Track, untracked
from imagenet_mds_convert.sources.parquet import NEEDS_HF, ParquetSource
from imagenet_mds_convert.sources.parquet_files import is_of, note_missing_files, select_files

_PREFIXES = ("hf://datasets/", "hf://", "huggingface:")
_OWNER = "ILSVRC"


def is_hub(location: str) -> bool:
    """Whether a location is on the hub."""
    return location.startswith(_PREFIXES)


def open_hub(location: str, splits: tuple[SplitName, ...] = SPLITS) -> "HubSource":
    """Ask the hub which files of the splits there are; none is downloaded yet.

    Raises:
        UserError: huggingface_hub is not installed, the token is missing or gives no access, or there are no such
            files.
        WorldError: the hub does not answer.
    """
    repo = next(location.removeprefix(prefix) for prefix in _PREFIXES if location.startswith(prefix)).strip("/")
    repo = repo if "/" in repo else f"{_OWNER}/{repo}"
    try:
        import huggingface_hub
        import pyarrow  # noqa: F401 # fail before a download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise UserError(NEEDS_HF) from None
    if not huggingface_hub.get_token():
        raise UserError(
            f"{location} is gated: accept its terms at https://huggingface.co/datasets/{repo}, create a token with "
            f"read access at https://huggingface.co/settings/tokens, and set HF_TOKEN to it"
        )
    with _explained(repo):
        info = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(repo, files_metadata=True)
    files = select_files(file.rfilename for file in info.siblings or ())
    if not files or not info.sha:
        raise UserError(f"{location} has no train-*-of-*.parquet or validation-*-of-*.parquet")
    wanted = tuple(name for split in splits for name in files if is_of(name, split))
    notes = note_missing_files(location, wanted)
    disable_progress_bars()
    with _explained(repo):
        # Without patterns it downloads nothing, and returns the folder that the files will be in.
        snapshot = huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=info.sha, endpoint=os.environ.get("HF_ENDPOINT"), allow_patterns=[]
        )
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return HubSource(
        LocalStorage(Path(snapshot)), wanted, tuple(notes), repo=repo, revision=info.sha, sizes_bytes=sizes
    )


@dataclass(frozen=True)
class HubSource(ParquetSource):
    """A repository of the hub at one revision, with the sizes of its files."""

    repo: str = ""
    revision: str = ""
    sizes_bytes: dict[str, int] = field(default_factory=dict, hash=False)

    def fetch(self, split: SplitName, track: Track = untracked) -> None:
        """Download the files of the split that are not in the cache, one after the other.

        Raises:
            UserError: the token gives no access to the files, or the disk has no room for them.
            WorldError: a file cannot be downloaded.
        """
        import huggingface_hub

        files = self.split_files(split)
        self._refuse_small_disk(files)
        with track(f"fetching {split}", len(files), "files") as advance:
            for name in files:
                with _explained(self.repo):
                    huggingface_hub.hf_hub_download(
                        self.repo,
                        name,
                        repo_type="dataset",
                        revision=self.revision,
                        endpoint=os.environ.get("HF_ENDPOINT"),
                    )
                advance(1)

    def _refuse_small_disk(self, files: Sequence[str]) -> None:
        from huggingface_hub import constants

        cache = LocalStorage(Path(constants.HF_HUB_CACHE))
        needed = sum(self.sizes_bytes.get(name, 0) for name in files if self.storage.size_bytes(name) is None)
        if needed > (free := cache.free_bytes()):
            raise UserError(
                f"{self.repo} would take {needed / 1e9:,.1f} GB more in {cache.location}, whose disk has "
                f"{free / 1e9:,.1f} GB free: set HF_HOME to a folder on a larger disk"
            )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn the hub's errors into one line that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repo} is gated and the token in HF_TOKEN gives no access: accept its terms at "
            f"https://huggingface.co/datasets/{repo} with the token's account"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no dataset {repo}, or the token in HF_TOKEN is invalid: check both") from None
    except (HfHubHTTPError, OSError) as error:  # a failed connection is an OSError
        raise WorldError(
            f"{repo} cannot be fetched: {error}. Finished files are kept: run the same command again"
        ) from error
