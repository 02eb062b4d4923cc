"""The dataset, the one contract between the stages: the shard format, the manifest, and how splits are opened."""
