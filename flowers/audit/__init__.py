"""The audit of a data set: which labels are probably wrong, by what cached features of the other photos say."""
