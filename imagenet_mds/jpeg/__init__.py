"""What both stages know of JPEG files: their markers, restart tiles, and what decoders say of a damaged one."""
