"""The dataset, the only contract between the stages: its shard format, its manifest, and how splits are opened."""
