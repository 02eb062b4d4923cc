"""Raw images to verified MDS shards: sources, the plan, the shard task, the conversion that runs them."""
