"""What is known of the devices, in the forms that other programs read."""
