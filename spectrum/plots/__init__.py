"""Pictures of a scan. Start at `heatmap`."""
