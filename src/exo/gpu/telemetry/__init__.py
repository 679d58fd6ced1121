"""How the devices are: sampling them, what is known of them now, and what that means."""
