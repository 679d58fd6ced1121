"""What devices did, on disk: samples in packed blocks, minutes, one writer and many readers."""
