"""The part that producers and workers share: the job, its ledger in Redis, the queue, broker settings, errors."""
