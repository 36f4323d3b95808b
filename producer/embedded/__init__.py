"""A whole service on this machine, for `producer run` and `producer edit`: a private Redis and a worker."""
