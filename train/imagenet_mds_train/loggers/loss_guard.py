"""Ends a run whose loss is not a number."""


class NotFinite(Exception):  # noqa: N818 # what the loss is
    """The loss is not a number any more; the message says since when and what to do."""


_SCALED_PATIENCE_BATCHES = 10
"""So many losses in a row may overflow in fp16, where the scaler leaves such steps out; elsewhere none."""
