"""The ledger as a protocol: append, read, commands, notices and election, with in-memory twins for tests."""
