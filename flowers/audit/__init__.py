"""The audit of a data set: labels that are probably wrong, judged by a head trained on the other photos."""
