"""A static site that classifies in the browser."""
