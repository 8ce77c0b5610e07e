"""What a network costs: parameters, MACs, memory access and latency."""
