"""The demo: the whole pipeline on drawn images, run with the commands that a user types."""
