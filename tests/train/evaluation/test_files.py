"""Image files as the network sees them: the pixels of the run's validation."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds_train.augment.views import validation_view
from imagenet_mds_train.config.schema import EvaluationConfig
from imagenet_mds_train.data.loaders import validation_loader
from tests.support.datasets import keys_at

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.evaluation.files import read_pixels

pytestmark = pytest.mark.slow  # imports composer


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("resize", ["reference", "antialias", "linear"])
def test_a_file_has_the_pixels_that_validation_has_of_the_sample_made_from_it(
    tree: Path, dataset: Path, resize: str
) -> None:
    config = EvaluationConfig.model_validate(
        {"resize_px": 40, "crop_px": 32, "resize": resize, "device_batch_size": 8, "workers_per_rank": 0}
    )
    keys = keys_at(dataset / "val")
    loader = validation_loader(config, ShardCache(dataset / "val"), len(keys), rank=0, ranks=1)
    # the images of all batches, channels before rows and columns
    validated = np.concatenate([images.numpy().copy() for images, _ in loader])
    assert len(validated) == len(keys)
    for key, pixels in zip(keys, validated, strict=True):
        seen = read_pixels(tree / "val" / key, validation_view(config))
        assert not isinstance(seen, str)
        assert np.array_equal(seen, pixels.transpose(1, 2, 0))
