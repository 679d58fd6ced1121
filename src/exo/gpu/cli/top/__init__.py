"""The live table of ``exo-gpu top``; only ``app`` and the panes load Textual."""
