"""The replay of `replay`: what it does in a training, how its losses are compared with the log."""
