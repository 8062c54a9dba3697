"""One frozen dataclass a job: the fields are the flags, the strings under them the help."""
