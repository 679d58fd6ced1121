"""The command ``exo-gpu``, for people; what it prints for programs is JSON."""
