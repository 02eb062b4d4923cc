"""One source image: `policy` decides what becomes of it, `prepare` does it."""
