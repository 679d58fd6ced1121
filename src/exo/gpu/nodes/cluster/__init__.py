"""Many machines as one partner: what an agent serves, and what a driver sees of all of them."""
