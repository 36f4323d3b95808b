"""What producers and workers agree on: the job, its ledger in Redis, the queue, storage, signing, settings, errors."""
