"""The trainer: a worker process that holds the data, and the daemon's side of it."""
