"""Contact sheets and other parts of reports."""
