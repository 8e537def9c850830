"""From image folders to batches: shards, orders, streams, transforms."""
