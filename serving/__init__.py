"""Online half of Trigger Guard: the Open Inference Protocol in front of a guard."""
