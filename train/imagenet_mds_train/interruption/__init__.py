"""Being asked to stop."""
