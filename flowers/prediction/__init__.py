"""Bulk prediction: file list to shards to part files to one table."""
