"""One file for each command of ``exo-gpu``; each is loaded only when it is called."""
