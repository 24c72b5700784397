"""Reads, writes and deletes the projection's rows in a database."""
