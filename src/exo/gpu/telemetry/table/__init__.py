"""What is known of every device now and lately, as columns."""
