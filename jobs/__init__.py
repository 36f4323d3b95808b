"""What producers and workers agree on: the job, its ledger in Redis, the queue, settings, errors."""
