"""Image decoders' messages about damaged files. Converting and training both act on them."""

import re

_INVENTED = re.compile(r"premature end|bad (Huffman|arithmetic) code|found marker .* instead of RST", re.IGNORECASE)


def damage_in(error: ValueError) -> str | None:
    """Return the damage that libjpeg warned about, None if it is harmless.

    Args:
        error: what simplejpeg's strict decoding raised.

    Returns:
        The warning, if the decoder had to invent a part of the image. Other warnings, about extraneous bytes and
        odd headers, leave the image whole.
    """
    return str(error).removeprefix("Corrupt JPEG data: ") if _INVENTED.search(str(error)) else None


def decoder_reason(error: Exception) -> str:
    """Return the message of an error without addresses of buffers, which differ in every run.

    An error without a message is named by its type.
    """
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>| '<_io.*?>'", "", f"{error}") or type(error).__name__
