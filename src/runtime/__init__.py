"""The device, numeric precision, and processes that train together."""
