"""Steps that several native plugins share."""
