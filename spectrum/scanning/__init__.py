"""How does a scan go: cached, resumed, shared? Start at `scan`."""
