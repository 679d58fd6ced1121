"""The waist: the only room that joins choosing and doing."""
