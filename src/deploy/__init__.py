"""Export to files for devices, verified on real images."""
