"""`producer serve`: the HTTP door in front of the queue.

It keeps nothing of its own; any number of doors may run side by side.
"""
