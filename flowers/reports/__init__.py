"""Results of runs and predictions: metrics, plots, pages."""
