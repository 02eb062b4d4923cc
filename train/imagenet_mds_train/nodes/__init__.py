"""Training on several machines: which of them this is, and how their launchers meet. Nothing here imports torch."""
