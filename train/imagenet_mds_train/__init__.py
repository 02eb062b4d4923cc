"""MDS shards to a trained, evaluated ResNet: the run's records, its processes, the data, the recipe, the checkpoints.

What the command line needs before a rank starts (`plan`, `records`, `launch`) imports no torch; only `rank` and what it
calls does.
"""
