"""exo.gpu: a pile of unlike GPUs as one machine. The front door; it hands names on lazily."""
