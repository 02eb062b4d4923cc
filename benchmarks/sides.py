"""The loaders that are compared, each in its own process: uint8 batches of 128, RandomResizedCrop and flip, forever.

`python benchmarks/sides.py NAME FOLDER SIZE CORES COUNTER` runs one of `SIDES` in its own environment. It counts its
images in a file of int64 that the measuring process maps too. If a worker makes one image after the other, each image
is counted when it is made, otherwise a batch when it arrives. Counting batches everywhere would need windows of many
seconds for a slow side.
"""

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from formats import REPEATS, files_of

BATCH_SIZE = 128
PREDOWNLOAD = 2 * BATCH_SIZE
"""Samples that a streaming dataset prefetches. Until it has, it is busier, so this must be over before measuring."""
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
COUNTER_SLOTS = 16
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """What a side needs to know.

    Attributes:
        folder: folder with the formats.
        size_px: side of a crop in pixels.
        cores: number of workers or threads.
        counter: (slots,) images made. Each process has its own slot, because additions to a shared one get lost.
    """

    folder: Path
    size_px: int
    cores: int
    counter: Any

    def made(self, images: int = 1) -> None:
        """Count images made in this process."""
        torch = sys.modules.get("torch")
        worker = torch.utils.data.get_worker_info() if torch else None
        self.counter[worker.id + 1 if worker else 0] += images


def torchvision_transform(size_px: int) -> Any:
    """Return the transform that most recipes use."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(size_px, SCALE, RATIO), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def torch_batches(job: Job, dataset: Any) -> Iterator[Any]:
    """Load a dataset of (image, class) with torch's DataLoader."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset,
        BATCH_SIZE,
        num_workers=job.cores,
        prefetch_factor=2,
        persistent_workers=True,
        drop_last=True,
    )
    while True:
        for images, _ in loader:
            yield images


def plain(job: Job) -> Iterator[Any]:
    """Load with StreamingDataset as its documentation shows."""
    from streaming import StreamingDataset

    from imagenet_mds_train.data.stream import own_resources

    transform = torchvision_transform(job.size_px)

    class Images(StreamingDataset):
        def __getitem__(self, at: Any) -> tuple[Any, int]:
            record = super().__getitem__(at)
            image = transform(record["x"].convert("RGB"))
            job.made()
            return image, int(record["y"])

    with own_resources():
        local = str(job.folder / "ordinary" / "train")
        images = Images(local=local, shuffle=True, batch_size=BATCH_SIZE, predownload=PREDOWNLOAD)
        yield from torch_batches(job, images)


def samples_of(folder: Path) -> int:
    """Return the number of samples of a split."""
    import json

    return sum(shard["samples"] for shard in json.loads((folder / "index.json").read_bytes())["shards"])


def our_config(size_px: int, workers: int, resize: str, prefetch_batches: int | None = None) -> Any:
    """Return a training configuration with the settings that matter for loading."""
    from imagenet_mds_train.config.load import parse_config

    values = {
        "global_batch_size": BATCH_SIZE,
        "data": {"workers_per_rank": workers, "predownload": PREDOWNLOAD}
        | ({"prefetch_batches": prefetch_batches} if prefetch_batches else {}),
        "augment": {"size_px": size_px, "resize": resize, "scale": SCALE, "ratio": RATIO},
        "optimizer": {"lr": 0.1},
        "schedule": {"epochs": 90},
    }
    return parse_config(values, "the benchmark")


def ours(job: Job, form: str, resize: str) -> Iterator[Any]:
    """Load with the loader of training."""
    from imagenet_mds.dataset.shard_cache import ShardCache
    from imagenet_mds_train.data.loaders import TrainingImages, training_loader
    from imagenet_mds_train.data.stream import own_resources

    def counted(images: Any, sample: int, item: Any = TrainingImages.__getitem__) -> Any:
        view = item(images, sample)
        job.made()
        return view

    TrainingImages.__getitem__ = counted  # type: ignore[method-assign] # counted in the worker that makes the image
    local = job.folder / form / "train"
    with own_resources():
        loader = training_loader(our_config(job.size_px, job.cores, resize), ShardCache(local), samples_of(local))
        while True:
            for batch in loader:
                yield batch[0]


def bytes_only(job: Job) -> Iterator[Any]:
    """Return the stored bytes of a batch in one tensor without decoding: the limit of shards and loader."""
    import torch
    from torch.utils.data import DataLoader

    from imagenet_mds.dataset.shard_cache import ShardCache
    from imagenet_mds_train.config.data import OrderConfig
    from imagenet_mds_train.data.stream import ImageStream, own_resources

    class Files(ImageStream):
        def __getitem__(self, sample: Any) -> bytes:
            stored, _ = self.read(int(sample))
            job.made()
            return stored.image

    local = job.folder / "ordinary" / "train"
    with own_resources():
        files = Files(
            shard_cache=ShardCache(local),
            samples=samples_of(local),
            device_batch_size=BATCH_SIZE,
            order=OrderConfig(),
            predownload=PREDOWNLOAD,
        )
        loader = DataLoader(
            files,
            BATCH_SIZE,
            num_workers=job.cores,
            persistent_workers=True,
            drop_last=True,
            collate_fn=lambda batch: torch.frombuffer(bytearray().join(batch), dtype=torch.uint8),
        )
        while True:
            yield from loader


def ffcv(job: Job, form: str) -> Iterator[Any]:
    """Load with the pipeline of ffcv's example, without the steps on a GPU."""
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage

    decoder = RandomResizedCropRGBImageDecoder((job.size_px, job.size_px), SCALE, RATIO)
    loader = Loader(
        str(job.folder / form / "train.beton"),
        batch_size=BATCH_SIZE,
        num_workers=job.cores,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        indices=np.tile(np.arange(len(files_of(job.folder))), REPEATS),
        pipelines={"image": [decoder, RandomHorizontalFlip(), ToTensor(), ToTorchImage()], "label": None},
    )
    while True:
        for batch in loader:
            job.made(BATCH_SIZE)
            yield batch[0]


def tf_data(job: Job) -> Iterator[Any]:
    """Decode and crop in one step, then resize linearly, the default, as TensorFlow's ImageNet recipes do."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job.cores)
    tf.config.threading.set_inter_op_parallelism_threads(job.cores)

    def view(data: Any) -> Any:
        box = tf.zeros((1, 0, 4))
        start, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            box,
            min_object_covered=0.0,
            aspect_ratio_range=RATIO,
            area_range=SCALE,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([start[:2], size[:2]], 0)
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(data, window, channels=3), (job.size_px, job.size_px))
        return tf.image.random_flip_left_right(tf.cast(image, tf.uint8))

    images = tf.data.TFRecordDataset(str(job.folder / "tfrecord" / "train.tfrecord")).repeat().shuffle(256)
    images = images.map(view, num_parallel_calls=job.cores, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = job.cores
    for batch in images.batch(BATCH_SIZE, drop_remainder=True).prefetch(1).with_options(options):
        job.made(BATCH_SIZE)
        yield batch.numpy()


def dali(job: Job) -> Iterator[Any]:
    """Load with the pipeline of DALI's example, entirely on the CPU."""
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=BATCH_SIZE, num_threads=job.cores, device_id=None, seed=0)  # type: ignore[untyped-decorator] # DALI has no types
    def pipeline() -> Any:
        files, _ = fn.readers.file(file_root=str(job.folder / "tree" / "train"), random_shuffle=True)
        crops = fn.decoders.image_random_crop(files, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO)
        resized = fn.resize(crops, size=(job.size_px, job.size_px))
        return fn.flip(resized, horizontal=fn.random.coin_flip())

    built = pipeline()
    built.build()
    while True:
        (batch,) = built.run()
        job.made(BATCH_SIZE)
        yield batch.as_array()


def webdataset(job: Job) -> Iterator[Any]:
    """Load from tar files, decoded by Pillow."""
    from webdataset import WebDataset

    transform = torchvision_transform(job.size_px)

    def view(image: Any) -> Any:
        made = transform(image)
        job.made()
        return made

    files = sorted(map(str, (job.folder / "webdataset").glob("*.tar")))
    images = WebDataset(files, resampled=True).shuffle(256).decode("pil").to_tuple("jpg", "cls")
    yield from torch_batches(job, images.map_tuple(view, int))


def litdata(job: Job) -> Iterator[Any]:
    """Load with litdata's own decoding, which returns tensors."""
    from litdata import StreamingDataLoader, StreamingDataset
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(job.size_px, SCALE, RATIO), v2.RandomHorizontalFlip()])

    class Images(StreamingDataset):
        def __getitem__(self, at: Any) -> tuple[Any, int]:
            record = super().__getitem__(at)
            image = transform(record["image"])
            job.made()
            return image, record["class"]

    images = Images(str(job.folder / "litdata"), shuffle=True, drop_last=True)
    loader = StreamingDataLoader(images, batch_size=BATCH_SIZE, num_workers=job.cores, persistent_workers=True)
    while True:
        for batch, _ in loader:
            yield batch


@dataclass(frozen=True)
class Side:
    """A loader: its batches, the format that it reads, and the peer in whose environment it runs, None for ours."""

    batches: Callable[[Job], Iterator[Any]]
    form: str
    peer: str | None = None


BASELINE = "plain StreamingDataset, Pillow, torchvision"
BYTES_ONLY = "bytes only"

_FORMS = {
    "ordinary shards": "ordinary",
    "--tiles": "tiles",
    "--tiles --half": "half",
    "--max-side 500 --tiles": "max_side",
    "all q90/500, --tiles": "reencoded",
    "all q90/500, --tiles --half": "reencoded_half",
    "--raw --min-side 256": "raw",
}

OURS = {f"ours, {name}, {how}": (form, how) for name, form in _FORMS.items() for how in ("linear", "antialias")}
"""Format and resize of each of our sides."""

SIDES: dict[str, Side] = {
    BASELINE: Side(plain, "ordinary"),
    BYTES_ONLY: Side(bytes_only, "ordinary"),
    **{name: Side(partial(ours, form=form, resize=how), form) for name, (form, how) in OURS.items()},
    "tf.data, fused decode and crop": Side(tf_data, "tfrecord", "tensorflow"),
    "ffcv, JPEG q90/500": Side(partial(ffcv, form="ffcv_jpeg"), "ffcv_jpeg", "ffcv"),
    "ffcv, raw 256": Side(partial(ffcv, form="ffcv_raw"), "ffcv_raw", "ffcv"),
    "DALI, CPU": Side(dali, "tree", "dali"),
    "webdataset": Side(webdataset, "webdataset", "webdataset"),
    "litdata": Side(litdata, "litdata", "litdata"),
}


def main() -> None:
    """Load forever."""
    name, folder, size_px, cores, counter = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    slots = np.memmap(counter, np.int64, "r+", shape=(COUNTER_SLOTS,))
    job = Job(Path(folder), int(size_px), int(cores), slots)
    for number, batch in enumerate(SIDES[name].batches(job)):
        if number == 0 and name != BYTES_ONLY:
            assert str(batch.dtype).endswith("uint8"), batch.dtype
            assert sorted(batch.shape) == sorted((BATCH_SIZE, 3, job.size_px, job.size_px)), batch.shape


if __name__ == "__main__":
    main()
