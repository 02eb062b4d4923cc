"""The demo: the whole pipeline on a drawn data set, run with the commands that a user types."""
