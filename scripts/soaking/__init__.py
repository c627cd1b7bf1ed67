"""What scripts/soak is made of: the plan of faults, the nodes, the acts, the checks and the report."""
