"""Hands without opinions: a job and a device in, an outcome out."""
