"""Life of processes: signals, lifetimes, locks, what an attempt at a run borrows from the machine, its GPUs."""
