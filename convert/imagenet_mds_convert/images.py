"""What becomes of one source image: stored as it is, turned into RGB JPEG, or left out, each with its reason.

JPEG bytes pass through untouched. What stock readers choke on or see otherwise (CMYK, PNG, other formats) is turned
into RGB JPEG once, here. Orientation in EXIF is not applied: stock ImageNet readers do not, and the published results
are without it.
"""

import io
import re
import warnings
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

from imagenet_mds.dataset.raw_pixels import decode_raw, encode_raw, is_raw
from imagenet_mds.jpeg.decoder_messages import damage_in, decoder_reason

MAX_PIXELS = 1 << 27
"""Larger pictures are left out: 11,585 x 11,585 decodes to 400 MB, and Pillow's own limit, at which the readers of the
dataset would fail, is not far above."""

MAX_FILE_BYTES = 1 << 28
"""Longer files are left out without reading them: as many pixels as are kept are 400 MB before any compression, and no
JPEG of them is near this."""

REENCODE_QUALITY = 95
"""Of the few images that are not RGB or grayscale JPEG; without chroma subsampling."""


@dataclass(frozen=True)
class Stored:
    """The bytes to store; `change` says what format was turned into RGB JPEG, None if none was; `scaled` whether the
    picture was made smaller, `tiled` whether it is stored with restart tiles."""

    image: bytes
    change: str | None = None
    scaled: bool = False
    tiled: bool = False


Form = Literal["file", "tiles", "raw"]
"""How a picture is stored: the file as it is, the file with restart tiles where it can have them, pixels."""


@dataclass(frozen=True)
class Scaling:
    """Makes larger pictures smaller, never smaller ones larger: the longer side to `max_side` pixels, or the shorter
    one to `min_side`; what is made smaller is stored as JPEG of this `quality`."""

    max_side: int | None = None
    min_side: int | None = None
    quality: int = 90

    def target(self, width: int, height: int) -> tuple[int, int] | None:
        """The size that a picture is made, None where it stays as it is."""
        if self.max_side is not None:
            wanted, given = self.max_side, max(width, height)
        elif self.min_side is not None:
            wanted, given = self.min_side, min(width, height)
        else:
            return None
        if given <= wanted:
            return None
        # Integers, rounded half up: no platform's floating point decides a byte of the dataset.
        first, second = ((2 * side * wanted + given) // (2 * given) for side in (width, height))
        return max(1, first), max(1, second)

    @property
    def most_pixels(self) -> int | None:
        """The pixels of a photograph of 4:3, which most have, when it is scaled; None where nothing is."""
        if self.max_side is not None:
            return self.max_side * (self.max_side * 3 // 4)
        if self.min_side is not None:
            return self.min_side * (self.min_side * 4 // 3)
        return None


_JPEG_TABLES_BYTES = 600


def likely_bytes(size_bytes: int, scaling: Scaling, form: Form) -> int:
    """How long an image will most likely be as it is stored, by no more than the size of its file, which every source
    of the same images has alike: pixels of 3 bytes, or JPEG of half a byte a pixel and its tables where it is made
    smaller.

    Args:
        size_bytes: of the file in the source.
        scaling: as `prepare` has it; raw pixels have one.
        form: as `prepare` has it.
    """
    if size_bytes > MAX_FILE_BYTES:
        return 0
    pixels = scaling.most_pixels
    if form == "raw":
        assert pixels is not None
        return 3 * pixels
    return size_bytes if pixels is None else min(size_bytes, _JPEG_TABLES_BYTES + pixels // 2)


class Unusable(Exception):  # noqa: N818 # it says what the image is, not what the program did wrong
    """An image that is left out; the message is the reason, as the report gives it."""


_AS_IT_IS = Scaling()


def prepare(data: bytes, check: str, scaling: Scaling = _AS_IT_IS, form: Form = "file") -> Stored:
    """Check one source image as `check` says and give what to store.

    Args:
        data: the file's bytes.
        check: `decode` reads every coefficient, `structure` walks the markers to the end and reads no pixel, `none`
            reads the header only. A picture that is scaled, tiled or stored raw is read whole whatever is said.
        scaling: makes larger pictures smaller.
        form: how it is stored.

    Raises:
        Unusable: it is not a whole image.
    """
    if not data:
        raise Unusable("empty file")
    if form == "raw":
        return _raw(data, scaling)
    if not data.startswith(b"\xff\xd8"):
        return _tiled(_to_rgb_jpeg(data, scaling), form)
    # What is read to its last coefficient needs no search for markers.
    is_read = check == "decode" or form == "tiles"
    components, width, height = walk_jpeg(data, scans=check == "structure" and not is_read)
    if components == 4:
        walk_jpeg(data)
        return _tiled(_to_rgb_jpeg(data, scaling), form)
    if target := scaling.target(width, height):
        walk_jpeg(data)
        return _tiled(Stored(_scaled_jpeg(data, target, scaling.quality), scaled=True), form)
    stored = _tiled(Stored(data), form)
    if is_read and not stored.tiled:
        _look_closely(data, check)
    return stored


def _look_closely(data: bytes, check: str) -> None:
    """Find a JPEG whole, in the cheapest way that does, or walk it marker by marker to say what is wrong with it."""
    if check == "decode" and (_proven_whole(data) or _decodes_without_complaint(data)):
        return
    walk_jpeg(data)
    if check == "decode":
        _decode(data)


def check_stored(image: bytes) -> None:
    """Look whether the stored bytes of a sample decode.

    Raises:
        Unusable: they do not.
    """
    if is_raw(image):
        try:
            decode_raw(image)
        except ValueError as error:
            raise Unusable(str(error)) from None
    else:
        prepare(image, "decode")


def _tiled(stored: Stored, form: Form) -> Stored:
    """The same with restart tiles, if that is wanted and can be."""
    if form != "tiles":
        return stored
    from imagenet_mds_convert.baseline import NotTileable  # numba takes a while, for those who need it
    from imagenet_mds_convert.tiles import tile_jpeg

    try:
        return replace(stored, image=tile_jpeg(stored.image), tiled=True)
    except NotTileable:
        return stored


def _raw(data: bytes, scaling: Scaling) -> Stored:
    target = None
    if data.startswith(b"\xff\xd8") and (header := walk_jpeg(data))[0] != 4:
        target = scaling.target(*header[1:])
        width, height = (2 * target[0], 2 * target[1]) if target else header[1:]
        image = _pixels(data, width, height)
    else:
        image = _open(data)
        _refuse_huge(*image.size)
        _load(image)
        target = scaling.target(*image.size)
    try:
        rgb = image.convert("RGB")
    except (OSError, ValueError) as error:  # a mode that is not a picture's
        raise Unusable(f"{image.mode} cannot be RGB ({error})") from None
    scaled = rgb.resize(target, Image.Resampling.LANCZOS) if target else rgb
    return Stored(encode_raw(np.asarray(scaled)), scaled=target is not None)


_AFTER_ENTROPY = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""What ends entropy-coded data: a marker that is neither a stuffed zero, a restart nor fill."""

_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # TEM, RST0 to RST7, SOI
_SOS, _EOI = 0xDA, 0xD9


def walk_jpeg(data: bytes, *, scans: bool = True) -> tuple[int, int, int]:
    """Walk a JPEG's markers from SOI to EOI (ITU-T T.81, annex B).

    Args:
        data: the file's bytes.
        scans: without, it ends where the first scan begins.

    Returns:
        The number of its colour components, its width and its height in pixels.

    Raises:
        Unusable: it ends before EOI, or is not a sequence of segments.
    """
    at, end, passed = 2, len(data), 0
    components = width = height = 0
    while True:
        if at + 2 > end:
            raise Unusable("truncated JPEG: the file ends before the end-of-image marker")
        if data[at] != 0xFF:
            raise Unusable(f"broken JPEG: no marker at byte {at}")
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker == 0xFF or marker in _STANDALONE:
            continue
        if marker == _EOI:
            if not components or not passed:
                raise Unusable("broken JPEG: it ends without an image")
            return components, width, height
        if at + 2 > end:
            raise Unusable("truncated JPEG: the file ends within a segment")
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > end:
            raise Unusable("truncated JPEG: the file ends within a segment")
        if marker in _FRAMES:
            if length < 8:
                raise Unusable("broken JPEG: its frame header is cut short")
            height, width, components = (
                int.from_bytes(data[at + 3 : at + 5], "big"),
                int.from_bytes(data[at + 5 : at + 7], "big"),
                data[at + 7],
            )
            if not width or not height or not components:
                raise Unusable(f"broken JPEG: {width} x {height} pixels, {components} components")
            _refuse_huge(width, height)
        at += length
        if marker == _SOS:
            passed += 1
            if not scans and components:
                return components, width, height
            found = _AFTER_ENTROPY.search(data, at)
            if not found:
                raise Unusable("truncated JPEG: the file ends within the picture")
            at = found.start()


def _refuse_huge(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unusable(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


_WALK_PAYS_AFTER = 5000
"""Images checked by one process before it loads the compiled walk, which costs a second and saves a fifth of a
millisecond on each: whoever has few images never pays, and whoever has many pays at most twice what was best."""

_checked = 0


def _proven_whole(data: bytes) -> bool:
    """Whether the compiled walk finds every block of a baseline JPEG, in two thirds of the time of a decode. What it
    does not find whole is for the decoder to judge, so nothing depends on which of them was asked."""
    global _checked
    _checked += 1
    if _checked <= _WALK_PAYS_AFTER:
        return False
    from imagenet_mds_convert.baseline import OtherKind  # numba takes a while, for those who need it
    from imagenet_mds_convert.tiles import whole_jpeg

    try:
        return whole_jpeg(data) is None
    except OtherKind:
        return False


def _decodes_without_complaint(data: bytes) -> bool:
    """Whether libjpeg reads the file from its first marker to an end-of-image marker without a warning, decoding all
    coefficients at an eighth of the size: the cheapest walk of the whole entropy-coded stream that is not compiled for
    the purpose. A file that ends otherwise is looked at by its markers."""
    if not data.endswith(b"\xff\xd9"):
        return False
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True


def _decode(data: bytes) -> None:
    """Decode all coefficients, or say which damage libjpeg warns of.

    Pillow swallows libjpeg's warnings, so a picture cut short with an end-of-image marker put behind it would pass.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        _refuse_damage(error)
        # What this decoder refuses otherwise is for the one that training falls back to.
        image = _open(data)
        image.draft(image.mode, (1, 1))
        _load(image)


def _refuse_damage(error: ValueError) -> None:
    if reason := damage_in(error):
        raise Unusable(f"does not decode whole ({reason})") from None


def _scaled_jpeg(data: bytes, target: tuple[int, int], quality: int) -> bytes:
    """One decode, in the DCT domain to at least twice the target where that is smaller than the whole (beyond that the
    eye cannot tell), then Lanczos. Metadata are dropped; none of them changes a pixel that a stock reader sees."""
    buffer = io.BytesIO()
    _pixels(data, 2 * target[0], 2 * target[1]).resize(target, Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=quality
    )
    return buffer.getvalue()


def _pixels(data: bytes, width: int, height: int) -> Image.Image:
    """A JPEG's picture, in gray or RGB as it is stored, scaled in the DCT domain to at least this size where that is
    smaller."""
    try:
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        colorspace = "GRAY" if colorspace == "Gray" else "RGB"
        decoded = simplejpeg.decode_jpeg(data, colorspace, min_height=height, min_width=width, min_factor=1)
    except ValueError as error:
        _refuse_damage(error)
        image = _open(data)
        image.draft(image.mode, (width, height))
        _load(image)
        return image
    return Image.fromarray(decoded[..., 0] if decoded.shape[2] == 1 else decoded)


def _to_rgb_jpeg(data: bytes, scaling: Scaling) -> Stored:
    image = _open(data)
    kind = f"{image.mode} {image.format}"
    _refuse_huge(*image.size)
    _load(image)
    buffer = io.BytesIO()
    try:
        rgb = image.convert("RGB")
        if target := scaling.target(*image.size):
            rgb.resize(target, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=scaling.quality)
        else:
            rgb.save(buffer, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    except (OSError, ValueError) as error:  # a side longer than 65,500 pixels, a mode that is not a picture's
        raise Unusable(f"{kind} of {image.width} x {image.height} pixels cannot be RGB JPEG ({error})") from None
    return Stored(buffer.getvalue(), f"{kind} to RGB JPEG", scaled=target is not None)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken EXIF and large pictures; the latter are refused by size here
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Unusable(str(error)) from None
    except MemoryError:
        raise  # the machine's, not the image's
    except Exception as error:  # Pillow's plugins raise what they like on broken files: SyntaxError, struct.error, ...
        raise Unusable(f"no image that can be read ({decoder_reason(error)})") from None


def _load(image: Image.Image) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except MemoryError:
        raise  # as in _open
    except Exception as error:  # as in _open
        raise Unusable(f"does not decode ({decoder_reason(error)})") from None
