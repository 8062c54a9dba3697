"""One file a job: parse flags, build the config, call flowers."""
