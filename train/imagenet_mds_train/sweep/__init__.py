"""The learning-rate sweep of `find-lr`: what it does to a training, what its curve says, how that is shown."""
