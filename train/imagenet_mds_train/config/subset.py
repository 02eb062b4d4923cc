"""Which subsets of a dataset can be trained on."""

from imagenet_mds.dataset.split_info import SplitInfo
from imagenet_mds.errors import UserError
from imagenet_mds_train.config.schema import TrainConfig


def refuse_subset(config: TrainConfig, location: str, train: SplitInfo) -> None:
    """Refuse a subset of a dataset that has none, or is smaller.

    Args:
        config: the run's.
        location: of the dataset, for messages.
        train: its training split.

    Raises:
        UserError: there is no such subset.
    """
    subset = config.data.subset_samples()
    if subset is None:
        return
    if train.classes is None:
        raise UserError(
            f"{location} has no manifest, so nothing says that its first images have all classes in equal share: "
            f"pass data.subset=null to train on all of it"
        )
    # A dataset that was converted as this subset is this subset, even if some of its images were left out.
    if subset > train.samples and subset != train.planned_subset:
        raise UserError(
            f"data.subset asks for {subset:,} training images and {location} has {train.samples:,}: pass "
            f"data.subset=null to train on all of them"
        )
