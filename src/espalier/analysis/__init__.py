"""What was measured, beside what the papers report."""
