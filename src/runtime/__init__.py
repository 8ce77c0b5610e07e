"""Where a run computes: the device, numeric precision, and processes that train together."""
