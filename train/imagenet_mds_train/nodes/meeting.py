"""How the launchers of several nodes start their ranks together, and learn how the others' ended. Imports no torch.

    node N -> node 0   hello: who it is; or why it cannot take part
    node 0 -> node N   orders: the job of the ranks, and the file that they start from; or the end of the run
    node N -> node 0   ready, or refused
    node 0 -> node N   go: where the ranks meet, once all nodes are ready
    both ways          ended: how the ranks of a node ended

A connection lasts as long as the ranks, so that its loss says that a node is gone. Each start of the ranks has a
meeting of its own.
"""

FORMAT = 1
"""Of the messages."""

MEETING_SECONDS = 900.0
"""How long the nodes wait for each other: they may fetch and verify a dataset first."""

READY_SECONDS = 300.0
"""How long the other side of a meeting may take for its next message, or the next bytes of a file."""

RETRY_SECONDS = 0.5

DISMISSAL_SECONDS = 5.0
"""How long a node that ends before a meeting tries to tell the others."""
