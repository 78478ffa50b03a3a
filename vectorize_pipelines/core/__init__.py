"""What everything else may use and what itself uses nothing of the project but its errors."""
