"""The recipe: algorithms, optimizer, schedule."""
