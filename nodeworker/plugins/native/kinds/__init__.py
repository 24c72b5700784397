"""One module or folder for each native interface plugin."""
