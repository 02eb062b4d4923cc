"""What becomes of one source image: stored as it is, turned into RGB JPEG, or left out, each with its reason.

JPEG bytes pass through untouched. What stock readers choke on or see otherwise (CMYK, PNG, other formats) is turned
into RGB JPEG once, here. Orientation in EXIF is not applied: stock ImageNet readers do not, and the published results
are without it.
"""

import io
import warnings
from dataclasses import replace

import numpy as np
import simplejpeg
from PIL import Image

from imagenet_mds.dataset.raw_pixels import decode_raw, encode_raw, is_raw
from imagenet_mds.jpeg.decoder_messages import damage_in, decoder_reason
from imagenet_mds_convert.images.policy import _AS_IT_IS, REENCODE_QUALITY, Form, Scaling, Stored
from imagenet_mds_convert.jpeg.walk import refuse_huge, walk_jpeg
from imagenet_mds_convert.sources.base import Unusable


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
    from imagenet_mds_convert.jpeg.baseline import NotTileable  # numba takes a while, for those who need it
    from imagenet_mds_convert.jpeg.tiling import tile_jpeg

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
        refuse_huge(*image.size)
        _load(image)
        target = scaling.target(*image.size)
    try:
        rgb = image.convert("RGB")
    except (OSError, ValueError) as error:  # a mode that is not a picture's
        raise Unusable(f"{image.mode} cannot be RGB ({error})") from None
    scaled = rgb.resize(target, Image.Resampling.LANCZOS) if target else rgb
    return Stored(encode_raw(np.asarray(scaled)), scaled=target is not None)


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
    from imagenet_mds_convert.jpeg.baseline import OtherKind  # numba takes a while, for those who need it
    from imagenet_mds_convert.jpeg.tiling import whole_jpeg

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
    refuse_huge(*image.size)
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
