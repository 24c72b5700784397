"""What happened, in words: pure readers of events."""
