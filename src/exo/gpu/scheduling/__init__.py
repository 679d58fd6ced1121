"""What to do: choosing, ranking and splitting as pure functions of a snapshot and a request."""
