"""What tools/doctor.py finds out: facts about this machine, and whether its device trains correctly."""
