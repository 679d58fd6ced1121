"""The parts of ``exo-gpu map``: templates, items, when to stop, and what is printed where."""
