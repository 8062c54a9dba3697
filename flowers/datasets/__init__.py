"""Data sets as a whole: the Oxford 102 flowers, a drawn sample set, the check for what is wrong with one."""
