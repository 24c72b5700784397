"""The commands of plumbline."""
