"""What a pass must move and compute, and how long that takes: floors and predictions, no GPU."""
