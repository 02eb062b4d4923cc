"""What a run reports: measured once, logged through Composer's logger."""
