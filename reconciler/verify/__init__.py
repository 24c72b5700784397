"""Whether Plumbline's picture is true: projection, ledger and reality held against one another."""
