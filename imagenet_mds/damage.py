"""What libjpeg says of a JPEG that is not whole, by which converting and training know one."""

import re

_INVENTED = re.compile(r"premature end|bad (Huffman|arithmetic) code|found marker .* instead of RST", re.IGNORECASE)


def damage_in(error: ValueError) -> str | None:
    """The damage that libjpeg warned of, as simplejpeg's strict decoding raises it: where a part of the picture had to
    be invented. Its other warnings, of bytes too many and of odd headers, leave the picture whole: None."""
    return str(error).removeprefix("Corrupt JPEG data: ") if _INVENTED.search(str(error)) else None
