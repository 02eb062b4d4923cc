"""Prepares one source image for a shard: kept, scaled, turned into RGB JPEG or into pixels, or left out with a reason.

JPEG bytes pass through untouched. Images that stock readers fail on or read differently (CMYK, PNG, other formats) are
turned into RGB JPEG once, here. EXIF orientation is not applied, because stock ImageNet readers do not apply it and
published results are without it.

Each image is looked at once (`read_frame`), `policy.decide` decides what becomes of it, and this module does it. An
image that is decoded is not searched for markers as well, unless it decodes with a complaint.
"""

import io
import warnings
from dataclasses import replace

import numpy as np
import simplejpeg
from PIL import Image

from imagenet_mds.dataset.raw_pixels import decode_raw, encode_raw, is_raw
from imagenet_mds.dataset.rgb import to_rgb
from imagenet_mds.jpeg.decoder_messages import damage_in, decoder_reason
from imagenet_mds.jpeg.tile_table import TILE_GROWTH
from imagenet_mds.vocabulary import CheckLevel, StoredForm
from imagenet_mds_convert.images.policy import (
    AS_IT_IS,
    HALF_FROM_PX,
    REENCODE_QUALITY,
    Scaling,
    Stored,
    decide,
)
from imagenet_mds_convert.jpeg.walk import Frame, read_frame, refuse_huge, walk_to_end
from imagenet_mds_convert.sources.base import Unusable


def prepare(
    data: bytes,
    check: CheckLevel,
    scaling: Scaling = AS_IT_IS,
    form: StoredForm = "file",
    tile_growth: float = TILE_GROWTH,
    compiled_check: bool = False,
    half_quality: int | None = None,
) -> Stored:
    """Check one source image and return what to store.

    Args:
        data: the file's bytes.
        check: `decode` reads every coefficient, `structure` walks the markers to the end and reads no pixel, `none`
            reads only the header. An image that is scaled, tiled, stored raw or copied at half its size is read to its
            end in any case.
        scaling: scales larger images down.
        form: how the image is stored.
        tile_growth: see `TILE_GROWTH`.
        compiled_check: try the compiled walk before the decoder; the result is the same. See `compiled_check_pays`.
        half_quality: JPEG quality of the half-size copy; None makes none.

    Raises:
        Unusable: it is not a complete image.
    """
    if not data:
        raise Unusable("empty file")
    frame = read_frame(data) if data.startswith(b"\xff\xd8") else None
    action = decide(frame, scaling, form)
    if frame and action != "keep":
        walk_to_end(data, frame)  # decoders fill in what is missing at the end
    if action == "pixels":
        return _raw(data, frame, scaling)
    if frame and action == "keep":
        stored = Stored(data)
    elif frame and action == "scale":
        stored = _scaled_jpeg(data, frame, scaling)
    else:
        stored = _to_rgb_jpeg(data, scaling)
    if half_quality is not None:
        stored = replace(stored, half=_half(stored.image, half_quality, form, tile_growth))
    if form == "tiles" and (tiled := _tile(stored.image, tile_growth)):
        return replace(stored, image=tiled, tiled=True)
    if frame and action == "keep" and not stored.half:
        _check_kept(data, frame, "structure" if form == "tiles" and check == "none" else check, compiled_check)
    return stored


def check_stored(image: bytes, half: bytes = b"", compiled_check: bool = False) -> None:
    """Check that the stored bytes of a sample decode.

    Args:
        image: the bytes.
        half: its half-size copy, if any.
        compiled_check: as in `prepare`.

    Raises:
        Unusable: they do not.
    """
    if is_raw(image):
        try:
            decode_raw(image)
        except ValueError as error:
            raise Unusable(str(error)) from None
    else:
        prepare(image, "decode", compiled_check=compiled_check)
    if half:
        try:
            prepare(half, "decode", compiled_check=compiled_check)
        except Unusable as error:
            raise Unusable(f"its half-size copy: {error}") from None


def _check_kept(data: bytes, frame: Frame, check: CheckLevel, compiled_check: bool) -> None:
    """Check a JPEG that is stored as it is, in the cheapest way that proves it complete. The markers of a file that
    fails are walked to say what is wrong with it."""
    if check == "none":
        return
    if check == "decode" and ((compiled_check and _proven_whole(data)) or _decodes_without_complaint(data)):
        return
    walk_to_end(data, frame)
    if check == "decode":
        _decode(data)


def _half(jpeg: bytes, quality: int, form: StoredForm, tile_growth: float) -> bytes:
    """The half-size copy of a stored JPEG, with restart tiles if the image may have them: scaled in the DCT domain,
    whose crops are as near to the whole image's as those of the mean of four pixels, within 0.3 dB. Sides are rounded
    up. Small images get none.

    Raises:
        Unusable: the image does not decode whole.
    """
    frame = read_frame(jpeg)
    if min(frame.width, frame.height) < HALF_FROM_PX:
        return b""
    walk_to_end(jpeg, frame)
    half = (frame.width + 1) // 2, (frame.height + 1) // 2
    pixels = _pixels(jpeg, half)
    if pixels.size != half:  # Pillow decoded it, which has no scaled decode of every kind
        pixels = pixels.convert("RGB").resize(half, Image.Resampling.BOX)
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality)
    copy = buffer.getvalue()
    return (_tile(copy, tile_growth) if form == "tiles" else None) or copy


def _tile(jpeg: bytes, growth_limit: float) -> bytes | None:
    """A JPEG with restart tiles, None if it cannot have them."""
    from imagenet_mds_convert.jpeg.baseline import NotTileable  # numba takes a third of a second to import
    from imagenet_mds_convert.jpeg.tiling import tile_jpeg

    try:
        return tile_jpeg(jpeg, growth_limit)
    except NotTileable:
        return None


def _proven_whole(data: bytes) -> bool:
    """Whether the compiled walk finds every block of a baseline JPEG, in two thirds of the time of a decode. If it does
    not, the decoder judges, so the result does not depend on which of them was asked."""
    from imagenet_mds_convert.jpeg.baseline import OtherKind  # numba takes a third of a second to import
    from imagenet_mds_convert.jpeg.tiling import whole_jpeg

    try:
        return whole_jpeg(data) is None
    except OtherKind:
        return False


def _decodes_without_complaint(data: bytes) -> bool:
    """Whether libjpeg reads the file from its first marker to an end-of-image marker without a warning. All
    coefficients are decoded, at an eighth of the size: the cheapest complete read that needs no compilation."""
    if not data.endswith(b"\xff\xd9"):
        return False
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError:
        return False
    return True


def _decode(data: bytes) -> None:
    """Decode all coefficients, and refuse a file with the damage that libjpeg warns of.

    Pillow discards libjpeg's warnings, so it would accept an image that was cut short and then ends with EOI.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        _refuse_damage(error)
        # What this decoder refuses otherwise is left to Pillow, as in training.
        image = _open(data)
        image.draft(image.mode, (1, 1))
        _load(image)


def _refuse_damage(error: ValueError) -> None:
    if reason := damage_in(error):
        raise Unusable(f"does not decode whole ({reason})") from None


def _raw(data: bytes, frame: Frame | None, scaling: Scaling) -> Stored:
    if frame and frame.is_stock:
        target, note = scaling.target(frame.width, frame.height), None
        rgb = _pixels(data, (2 * target[0], 2 * target[1]) if target else (frame.width, frame.height)).convert("RGB")
    else:
        image = _open(data)
        kind = f"{image.mode} {image.format}"
        _load(image)
        target = scaling.target(*image.size)
        try:
            rgb, note = to_rgb(image)
        except (OSError, ValueError) as error:  # a mode that cannot be converted
            raise Unusable(f"{kind} cannot be RGB ({error})") from None
        note = note and f"{kind} to RGB, {note}"
    scaled = rgb.resize(target, Image.Resampling.LANCZOS) if target else rgb
    return Stored(encode_raw(np.asarray(scaled)), note, scaled=target is not None)


def _scaled_jpeg(data: bytes, frame: Frame, scaling: Scaling) -> Stored:
    """Scale a JPEG down: in the DCT domain to at least twice the target, if that is smaller than the original (the
    difference is invisible), then by Lanczos. Metadata are dropped; none of them changes pixels for stock readers."""
    target = scaling.target(frame.width, frame.height)
    assert target is not None
    buffer = io.BytesIO()
    image = _pixels(data, (2 * target[0], 2 * target[1])).resize(target, Image.Resampling.LANCZOS)
    image.save(buffer, "JPEG", quality=scaling.quality)
    return Stored(buffer.getvalue(), scaled=True)


def _pixels(data: bytes, at_least: tuple[int, int]) -> Image.Image:
    """Decode a JPEG, in gray or RGB as stored, scaled in the DCT domain to at least this width and height if that is
    smaller than the original."""
    width, height = at_least
    try:
        _, _, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        colorspace = "GRAY" if colorspace == "Gray" else "RGB"
        decoded = simplejpeg.decode_jpeg(data, colorspace, min_height=height, min_width=width, min_factor=1)
    except ValueError as error:
        _refuse_damage(error)
        image = _open(data)
        image.draft(image.mode, at_least)
        _load(image)
        return image
    return Image.fromarray(decoded[..., 0] if decoded.shape[2] == 1 else decoded)


def _to_rgb_jpeg(data: bytes, scaling: Scaling) -> Stored:
    image = _open(data)
    kind = f"{image.mode} {image.format}"
    _load(image)
    buffer = io.BytesIO()
    try:
        rgb, note = to_rgb(image)
        if target := scaling.target(*image.size):
            rgb.resize(target, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=scaling.quality)
        else:
            rgb.save(buffer, "JPEG", quality=REENCODE_QUALITY, subsampling=0)
    except (OSError, ValueError) as error:  # a side longer than 65,500 pixels, or a mode that cannot be converted
        raise Unusable(f"{kind} of {image.width} x {image.height} pixels cannot be RGB JPEG ({error})") from None
    change = f"{kind} to RGB JPEG" + (f", {note}" if note else "")
    return Stored(buffer.getvalue(), change, scaled=target is not None)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken EXIF, and about large images, which `refuse_huge` handles
            return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise Unusable(str(error)) from None
    except MemoryError:
        raise  # this machine's problem, not the image's
    except Exception as error:  # Pillow's plugins raise anything on broken files: SyntaxError, struct.error, ...
        raise Unusable(f"no image that can be read ({decoder_reason(error)})") from None


def _load(image: Image.Image) -> None:
    refuse_huge(*image.size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about broken metadata, as on opening
            image.load()
    except MemoryError:
        raise  # this machine's problem, not the image's
    except Exception as error:  # Pillow's decoders raise anything on broken data, as its plugins do on opening
        raise Unusable(f"does not decode ({decoder_reason(error)})") from None
