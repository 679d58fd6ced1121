"""What ``exo-gpu split`` shows: a table and a picture for people, settings for engines."""
