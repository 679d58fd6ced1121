"""What models need, read from the headers of their files: never a weight, in bounded memory."""
