"""What do scores and spectra look like? Start at `heatmap`. matplotlib is needed, and imported only to draw."""
