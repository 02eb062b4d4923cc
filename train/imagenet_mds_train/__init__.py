"""MDS shards to a trained, evaluated ResNet.

`config` and `run` are what the command line needs before a rank starts; they import no torch. `rank` is what each rank
runs, through `trainer`.
"""
