"""The ledger as a protocol: append, read, commands, notices and election, with an in-memory twin for tests."""
