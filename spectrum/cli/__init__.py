"""What does the command do? Start at `entry`."""
