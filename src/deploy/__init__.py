"""Files for devices, verified on real images."""
