"""The request to stop at the end of a batch."""


class StopRequested(Exception):  # noqa: N818 # an order, not an error
    """Everything is saved, and the run is to end now, ready to continue."""
