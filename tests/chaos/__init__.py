"""Runs that are interrupted again and again, at moments drawn from a seed, and must end as the undisturbed run."""
