"""Measurements. Each prints one JSON object per line: bench, value, unit, target, holds."""
