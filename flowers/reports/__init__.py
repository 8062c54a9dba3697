"""What a run or a prediction amounted to: metrics, plots, pages."""
