"""One set of images in every source's format, and the comparison of what is made of them."""

from pathlib import Path

from tests.convert.drawing import encoded, files, noise

WNIDS = ("n01440764", "n01443537", "n02099601", "n15075141")
TRAIN_COUNTS = (4, 3, 5, 2)
VAL_WNIDS = ("n02099601", "n01440764", "n15075141", "n02099601", "n01443537", "n01440764")
"""The label of validation image 1, 2, 3 and so on: in no order."""


def val_name(number: int) -> str:
    """The official name of a validation image."""
    return f"ILSVRC2012_val_{number:08}.JPEG"


def make_images(root: Path) -> Path:
    """The images as an extracted tree, a zero-byte one and a truncated one among them."""
    jpeg = 0

    def put(path: Path) -> None:
        nonlocal jpeg
        jpeg += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(noise(seed=jpeg))
        path.write_bytes(data if jpeg not in (2, 6) else data[: 0 if jpeg == 2 else 200])

    for wnid, count in zip(WNIDS, TRAIN_COUNTS, strict=True):
        for number in range(count):
            put(root / "train" / wnid / f"{wnid}_{3 * number}.JPEG")
    for number, wnid in enumerate(VAL_WNIDS, 1):
        put(root / "val" / wnid / val_name(number))
    return root


def shards(dataset: Path) -> dict[str, bytes]:
    """The shard files, indices and keys of a dataset, by their paths: all but the manifests, which name the source."""
    return {name: data for name, data in files(dataset).items() if not name.endswith("manifest.json")}
