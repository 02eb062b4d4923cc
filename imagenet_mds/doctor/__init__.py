"""What this machine gives a training, and what holds it back."""
