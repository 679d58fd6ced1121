"""Asking devices over and over: when, on which thread, and what comes of it."""
