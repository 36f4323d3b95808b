"""The commands of `producer`, one file per group."""
