"""What becomes of one source image: decided in `policy`, done in `prepare`."""
