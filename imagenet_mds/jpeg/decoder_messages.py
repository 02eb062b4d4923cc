"""What image decoders say about a damaged file. Converting and training both decide by it."""

import re

_INVENTED = re.compile(r"premature end|bad (Huffman|arithmetic) code|found marker .* instead of RST", re.IGNORECASE)


def damage_in(error: ValueError) -> str | None:
    """The damage that libjpeg warned of, as simplejpeg's strict decoding raises it: where a part of the picture had to
    be invented. Its other warnings, of bytes too many and of odd headers, leave the picture whole: None."""
    return str(error).removeprefix("Corrupt JPEG data: ") if _INVENTED.search(str(error)) else None


def decoder_reason(error: Exception) -> str:
    """Pillow's message without what differs from run to run (addresses of buffers); the error's type if it is empty."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>| '<_io.*?>'", "", f"{error}") or type(error).__name__
