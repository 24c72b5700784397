"""The projection in a database: tables, reads, writes, deletion."""
