"""Shards of any writer: which of Streaming's encodings hold images and class numbers, and what they hold.

Stock datasets name the image's column `x` and the class's `y` as ours do, but encode them as their writers liked, and
may have other columns.
"""

import json
import re
import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from imagenet_mds.dataset.mds import IMAGE_COLUMN, LABEL_COLUMN, Record, column_spans, sample_offsets

_INTEGER = re.compile(r"u?int(8|16|32|64)?")
_FLOATS = frozenset({"float16", "float32", "float64"})
_TEXTS = frozenset({"str", "str_int", "str_float", "str_decimal", "json", "bytes"})
_IMAGES = frozenset({"jpeg", "png", "pil", "jpeg_array", "jpegarray", "bytes"})


def holds_images(encoding: str) -> bool:
    """Whether a column of this encoding holds an image as a file or as Streaming's `pil` pixels."""
    return encoding in _IMAGES


def holds_labels(encoding: str) -> bool:
    """Whether a column of this encoding may hold class numbers; see `decode_label`."""
    return _INTEGER.fullmatch(encoding) is not None or encoding in _FLOATS | _TEXTS


class NotAClass(ValueError):  # noqa: N818 # what the label is
    """A label that is no class number."""


def decode_label(encoding: str, data: bytes) -> int:
    """Decode a class number from a cell of a label column.

    Args:
        encoding: the column's encoding in the header, one of Streaming's integers, floats or strings.
        data: the cell.

    Raises:
        NotAClass: the encoding does not hold numbers, or the cell is not a whole number from 0 on.
    """
    if _INTEGER.fullmatch(encoding):
        number: float = int.from_bytes(data, "little", signed=not encoding.startswith("u"))
    elif encoding in _FLOATS:
        number = float(np.frombuffer(data, encoding)[0])
    elif encoding in _TEXTS:
        try:
            number = float(data)
        except ValueError:
            text = data.decode("utf-8", "backslashreplace")
            raise NotAClass(f"column y ({encoding}) holds '{text}' where a class number should be") from None
    else:
        raise NotAClass(f"column y holds {encoding} where class numbers should be")
    if not 0 <= number < 1 << 31 or number != int(number):
        raise NotAClass(f"column y ({encoding}) holds {number:g}, which is no class number")
    return int(number)


def decode_stock_shard(data: bytes, path: str) -> Iterator[Record]:
    """Yield the samples of a shard of any writer with images in `x` and labels in `y`, as its header describes them.

    A sample without `i` gets its position in the shard as its index.

    Args:
        data: the file's bytes.
        path: the file's name in messages.

    Raises:
        NotAClass: a label is no class number.
        ValueError: the file is not such a shard, or is truncated.
    """
    offsets = sample_offsets(data, path).tolist()
    place = None
    try:
        header = json.loads(data[4 + 4 * len(offsets) : offsets[0]])
        columns = {name: number for number, name in enumerate(header["column_names"])}
        sizes, encodings = header["column_sizes"], header["column_encodings"]
        images, labels = columns[IMAGE_COLUMN], columns[LABEL_COLUMN]
        for place, (start, end) in enumerate(pairwise(offsets)):
            cells = [data[slice(*span)] for span in column_spans(data, sizes, start, end)]
            index = int.from_bytes(cells[columns["i"]], "little", signed=True) if "i" in columns else place
            yield Record(index, cells[images], decode_label(encodings[labels], cells[labels]))
    except NotAClass as error:
        raise NotAClass(f"{path}: sample {place}: {error}") from None
    except (struct.error, ValueError, KeyError, TypeError) as error:
        if place is not None:
            raise ValueError(f"{path}: sample {place} is damaged: {error}") from None
        raise ValueError(f"{path} is not an MDS shard with images in x and classes in y ({error!r})") from None
