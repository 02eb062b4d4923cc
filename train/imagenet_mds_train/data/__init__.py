"""Batches: the stream of samples, the loaders, the memory they cross in, the device they go to."""
