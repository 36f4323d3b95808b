"""The daemon: takes jobs from the queue, runs them on the resident model, publishes and reports."""
