"""Shards as repeatable tasks: one built, recorded, and run by a process pool or by Ray."""
