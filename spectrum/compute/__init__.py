"""How is a matrix scored, fast? Start at `snr`."""
