"""Helpers of the tests: commands, servers, drawn images, datasets."""
