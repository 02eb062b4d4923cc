"""What both stages need to know about JPEG files: markers, restart tiles, and decoders' messages about damage."""
