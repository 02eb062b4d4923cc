"""Pictures and labels as the network sees them."""

import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.process.attempt import SHARED_MEMORY
from imagenet_mds.seeds import sample_seed
from imagenet_mds_train.augment.decode import decode_picture
from imagenet_mds_train.augment.views import Augmentation, seeded, validation_view
from imagenet_mds_train.config.augment import AugmentConfig
from imagenet_mds_train.config.data import OrderConfig
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import EvaluationConfig
from imagenet_mds_train.data.device import PADDING_LABEL
from imagenet_mds_train.data.loaders import TrainingImages, validation_loader
from imagenet_mds_train.data.stream import ImageStream, StoredImage, own_resources
from tests.support.command import done
from tests.support.datasets import manifest_at
from tests.support.drawing import encoded, make_tree, noise
from tests.support.shards import read_shard

EVALUATION = EvaluationConfig(resize_px=20, crop_px=16, device_batch_size=4, workers_per_rank=0)


def digest(image: torch.Tensor) -> str:
    """The pixels' name."""
    return hashlib.sha256(image.numpy().tobytes()).hexdigest()


def seen(images: TrainingImages, sample: int) -> str:
    """A name for what training sees of a sample."""
    view, _ = images[sample]
    return hashlib.sha256(view.pixels.tobytes() + repr(view.jitter).encode()).hexdigest()


def stream(folder: Path, samples: int) -> ImageStream:
    """The beginning of a split, in its order, in batches of 5."""
    order = OrderConfig(shuffle=False)
    return ImageStream(shard_cache=ShardCache(folder), samples=samples, device_batch_size=5, order=order, predownload=8)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_validation_sees_each_sample_exactly_once(dataset: Path, ranks: int, workers: int) -> None:
    samples = manifest_at(dataset / "val").samples
    config = EVALUATION.model_copy(update={"workers_per_rank": workers})
    files = ShardCache(dataset / "val")
    batches = [
        # Copies, because the memory of a batch is used again.
        [
            (images.clone(), labels)
            for images, labels in validation_loader(config, files, samples, rank=rank, ranks=ranks)
        ]
        for rank in range(ranks)
    ]
    assert len({len(of_rank) for of_rank in batches}) == 1, "ranks with fewer batches would leave the others waiting"
    pairs = [
        (digest(image), int(label))
        for of_rank in batches
        for images, labels in of_rank
        for image, label in zip(images, labels, strict=True)
        if label != PADDING_LABEL
    ]
    view = validation_view(config)
    stored = [
        (digest(torch.from_numpy(view(record.image).pixels.copy()).permute(2, 0, 1)), record.label)
        for path in sorted((dataset / "val").glob("*.mds"))
        for record in read_shard(path)
    ]
    assert sorted(pairs) == sorted(stored)
    padding = sum(int((labels == PADDING_LABEL).sum()) for of_rank in batches for _, labels in of_rank)
    assert padding == -samples % ranks


@pytest.mark.usefixtures("blocks")
def test_a_subset_is_the_datasets_beginning(dataset: Path) -> None:
    images = stream(dataset / "train", 25)
    stored = [record for path in sorted((dataset / "train").glob("*.mds")) for record in read_shard(path)]
    assert images.size == 25
    assert [images.read(sample) for sample in range(25)] == [
        (StoredImage(record.image), record.label) for record in stored[:25]
    ]
    assert len(images) == 25


@pytest.mark.usefixtures("blocks")
def test_crops_come_from_half_size_copies_where_the_dataset_has_them(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", n00000001=3, n00000002=3)
    for number, path in enumerate(sorted(tree.glob("*/*/*.JPEG"))):
        path.write_bytes(encoded(noise(160, 130, seed=number)))
    done("convert", tree, tmp_path / "mds", "--half", "--tiles", "--workers", 1)
    values = {"global_batch_size": 2, "augment": {"size_px": 32}, "optimizer": {"lr": 1}, "schedule": {"epochs": 1}}
    images = TrainingImages(parse_config(values, "test"), ShardCache(tmp_path / "mds" / "train"), 6)
    denominators = set()
    for sample in range(6):
        stored, label = images.read(sample)
        assert stored.half
        view, same_label = images.view(sample, 0)
        seed = sample_seed(images.seed, 0, sample)
        expected = images.augmentation.view(stored.image, seed, 0, stored.half)
        assert (label, view.crop) == (same_label, expected.crop)
        assert np.array_equal(view.pixels, expected.pixels)
        denominators.add(view.crop.denominator)
    assert 2 in denominators


@pytest.mark.usefixtures("blocks")
def test_an_epoch_leaves_nothing_behind(dataset: Path) -> None:
    """The library starts threads for each epoch and keeps its sample numbers as long as the process lives."""
    images = stream(dataset / "train", 100)
    threads = threading.active_count()
    for _ in range(3):
        assert len(list(images)) == 100
    begun = iter(images)
    next(begun)  # an epoch that is given up
    assert len(list(images)) == 100
    assert threading.active_count() <= threads
    assert not hasattr(images, "_iterator")


@pytest.mark.usefixtures("blocks")
def test_shared_memory_is_numbered_from_the_attempts_base(dataset: Path) -> None:
    """Fails when the library finds its prefixes another way than through `_each_prefix_int`."""
    import os

    base = int(os.environ["IMAGENET_MDS_BLOCK_BASE"])
    before = {path.name for path in SHARED_MEMORY.iterdir()}
    images = stream(dataset / "val", 10)
    made = {path.name for path in SHARED_MEMORY.iterdir()} - before
    assert len(images) == 10
    assert made
    assert all(base <= int(name.split("_")[0]) < base + 100 for name in made)


@pytest.mark.usefixtures("blocks")
def test_a_dataset_opens_no_block_of_those_before_it(dataset: Path) -> None:
    def opened() -> int:
        before = len(list(Path("/proc/self/fd").iterdir()))
        stream(dataset / "val", 10)
        return len(list(Path("/proc/self/fd").iterdir())) - before

    assert len({opened() for _ in range(4)}) == 1


@pytest.mark.usefixtures("blocks")
def test_augmentation_does_not_depend_on_what_else_draws(dataset: Path) -> None:
    config = parse_config(
        {
            "global_batch_size": 4,
            "augment": {"size_px": 16, "color_jitter": {"hue": 0.2}, "randaugment": {}},
            "optimizer": {"lr": 1},
            "schedule": {"epochs": 1},
        },
        "test",
    )
    images = TrainingImages(config, ShardCache(dataset / "train"), 20)
    torch.manual_seed(1)
    first = [seen(images, sample) for sample in range(8)]
    state = torch.get_rng_state()
    again = [seen(images, sample) for sample in reversed(range(8))][::-1]
    assert first == again
    assert torch.equal(state, torch.get_rng_state()), "training must not notice that a sample was augmented"
    images.epoch = 1
    assert all(one != other for one, other in zip(first, [seen(images, s) for s in range(8)], strict=True))


@pytest.mark.parametrize("seed", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_every_seed_of_64_bits_is_taken(seed: int) -> None:
    with seeded(seed):
        first = torch.rand(3)
    with seeded(seed):
        assert torch.equal(first, torch.rand(3))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_jpeg_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, "JPEG")
    picture = decode_picture(buffer.getvalue())
    assert picture.mode == "RGB"
    view = Augmentation(AugmentConfig(size_px=16)).view(buffer.getvalue(), seed=1, epoch=0)
    assert view.pixels.shape == (16, 16, 3)
    assert view.pixels.dtype == np.uint8
    # libjpeg-turbo makes no RGB of CMYK.
    assert view.slowly == (mode == "CMYK")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("subsampling", [0, 1, 2, None])
def test_the_reference_decodes_jpeg_as_pillow_does(subsampling: int | None, options: dict[str, Any]) -> None:
    """Every pixel, of every way to store colour, and gray (None); sides that are no multiples of a block too."""
    dice = np.random.Generator(np.random.PCG64(1))
    for width, height, quality in ((64, 48, 75), (37, 83, 95), (1, 5, 30)):
        coarse = dice.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])
        sampled = {} if subsampling is None else {"subsampling": subsampling}
        buffer = io.BytesIO()
        (picture.convert("L") if subsampling is None else picture).save(
            buffer, "JPEG", quality=quality, **sampled, **options
        )
        reference = Image.open(buffer).convert("RGB")
        assert decode_picture(buffer.getvalue()).tobytes() == reference.tobytes()


def test_validation_is_torchvisions_resize_and_crop() -> None:
    """Pixel for pixel what stock evaluation does: Pillow's antialiased bilinear, then the centre."""
    dice = np.random.Generator(np.random.PCG64(0))
    picture = Image.fromarray(dice.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    config = EvaluationConfig(resize_px=32, crop_px=24)
    image = validation_view(config)(buffer.getvalue()).pixels
    stock = Image.open(buffer).resize((48, 32), Image.Resampling.BILINEAR).crop((12, 4, 36, 28))
    assert np.array_equal(image, np.asarray(stock))
    for how, levels in (("antialias", 2), ("linear", 255)):
        fast = validation_view(config.model_copy(update={"resize": how}))(buffer.getvalue()).pixels
        assert fast.shape == image.shape
        assert np.abs(fast.astype(int) - image).max() <= levels
    buffer.seek(0)
    png = io.BytesIO()
    Image.open(buffer).save(png, "PNG")
    view = validation_view(config.model_copy(update={"resize": "antialias"}))
    one, other = (view(data.getvalue()).pixels.astype(int) for data in (buffer, png))
    assert np.abs(one - other).max() <= 1


def test_own_resources_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    before = dict(os.environ)
    with own_resources():
        assert os.environ["TMPDIR"] != str(tmp_path)
    assert dict(os.environ) == before
