"""The parts that everything else may use, and that use nothing of the project but its errors."""
