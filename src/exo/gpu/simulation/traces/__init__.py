"""Readers of recorded clusters and workloads: files in, values out, every fault with its place."""
